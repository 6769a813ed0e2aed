"""Artifacts on an object store."""

import os
import re
from pathlib import Path

import pytest
from made import FILES, begin, draft, make
from s3 import S3

from bitlm import storage
from bitlm.artifacts import Store
from bitlm.errors import ArtifactError, ConfigError, SourceError
from bitlm.storage import cache as cache_module


def test_a_folder_is_copied_together_and_stays_while_it_is_read(
    s3_root: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(s3_root)
    files = {f"model/{name}": os.urandom(1000) for name in ("config.json", "deep/a.safetensors", "b.safetensors")}
    model, other = make(store, draft(), files), make(store, draft(name="other"), {"f": os.urandom(1500)})
    monkeypatch.setenv("BITLM_CACHE_BYTES", "3000")
    monkeypatch.setattr(cache_module, "WAIT_SECONDS", 0.2)
    with store.local_folder(model, "model") as folder:
        assert {path: Path(folder).parent.joinpath(path).read_bytes() for path in files} == files
        with pytest.raises(ConfigError, match="no room for corpus/other@v1"):
            store.read_bytes(other, "f")
        assert {path: Path(folder).parent.joinpath(path).read_bytes() for path in files} == files
    assert len(store.read_bytes(other, "f")) == 1500
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= 3000
    with store.local_folder(model, "model/deep/") as folder:
        assert [path.name for path in Path(folder).iterdir()] == ["a.safetensors"]
    with pytest.raises(ArtifactError, match="corpus/tiny@v1 has no folder mod"):
        store.local_folder(model, "mod").__enter__()


def test_the_cache_is_checked_too(s3_root: str, cache: Path) -> None:
    store = Store(s3_root)
    record = make(store)
    with store.local_file(record, "a.bin") as local:
        path = Path(local)
    path.write_bytes(b"damaged")
    assert store.read_bytes(record, "a.bin") == FILES["a.bin"]
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_empty_objects_that_stand_for_folders_belong_to_no_artifact(s3_root: str, cache: Path) -> None:
    store = Store(s3_root)
    fs, path = storage.filesystem(s3_root)
    bucket, _, prefix = path.partition("/")
    first = make(store, draft(), {"shards/a": b"a"})
    inside = ("corpus/tiny@v1/", "corpus/tiny@v1_$folder$", "corpus/tiny@v1/shards/", "corpus/tiny@v1/shards_$folder$")
    for marker in ("", "corpus/", "corpus", *inside):
        fs.call_s3("put_object", Bucket=bucket, Key=f"{prefix}/{marker}")
    second = make(store, draft(identity={"n": 2}), {"shards/a": b"a"})
    assert [first.id, second.id] == ["corpus/tiny@v1", "corpus/tiny@v2"]
    assert store.records() == [first, second]
    for record in (first, second):
        store.verify(record)
        assert store.read_bytes(record, "shards/a") == b"a"


def test_listing_costs_few_requests(s3: S3) -> None:
    store = Store(s3.root)
    for n in range(3):
        make(store, draft(identity={"n": n}), {f"shards/{i}": b"x" for i in range(20)})
    s3.requests.clear()
    assert len(store.records()) == 3
    assert len(s3.requests) <= 2 + 2 * 3, (
        s3.requests
    )  # a listing for the root and the stage; size and bytes of a record


def test_a_remote_commit_that_fails_leaves_nothing(s3: S3) -> None:
    store, of = Store(s3.root), draft()
    for part in ("tiny%40v1/deep", "tiny%40v1/artifact.json", "claims/corpus/tiny"):
        work = begin(store, of)
        s3.fail("PUT", part, "403 AccessDenied")
        s3.requests.clear()
        with pytest.raises(SourceError, match="access denied"):
            store.commit(work, of)
        assert any(re.search(part, path) for _, path in s3.requests)
        s3.faults.clear()
        work.release()
        assert store.records() == []
        assert [path for path in storage.list_files(s3.root) if not path.startswith(".work/corpus")] == []
    record = store.commit(store.begin(of.stage, of.name, of.fingerprint), of)
    assert record.id == "corpus/tiny@v1"
    store.verify(record)
    assert storage.list_folders(store.root) == ["corpus"]


def test_a_passing_fault_during_a_remote_commit_is_survived(s3: S3) -> None:
    store, of = Store(s3.root), draft()
    work = begin(store, of)
    s3.fail("PUT", "claims", "lose", times=1)
    s3.fail("PUT", "artifact.json", "lose", times=1)
    s3.fail("PUT", "a.bin", "503 SlowDown", times=1)
    record = store.commit(work, of)
    assert record.id == "corpus/tiny@v1"
    store.verify(record)


def test_a_claimed_version_is_left_to_its_owner(s3: S3) -> None:
    store = Store(s3.root)
    assert storage.write_new(storage.join(s3.root, ".work/claims/corpus/tiny@v1"), b"someone")
    assert make(store).id == "corpus/tiny@v2"
    assert storage.list_files(s3.root + "/.work") == ["claims/corpus/tiny@v1"]


@pytest.mark.parametrize("when", ["before the commit", "during the commit"])
def test_work_taken_up_by_another_machine_is_not_committed(s3: S3, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    store, of = Store(s3.root), draft()
    work, copy = begin(store, of), storage.copy

    def take_up(*_: str) -> None:
        other = b'{"token": "other", "host": "elsewhere", "pid": 7, "born": 1.0}'
        storage.write_atomic(storage.join(work.folder, "owner"), other)
        copy(*_)

    if when == "during the commit":
        monkeypatch.setattr(storage, "copy", take_up)
    else:
        storage.write_atomic(storage.join(work.folder, "owner"), b'{"token": "other", "host": "elsewhere", "pid": 7}')
        s3.requests.clear()
    with pytest.raises(ArtifactError, match="taken up by process 7 on elsewhere"):
        store.commit(work, of)
    if when == "before the commit":
        assert not any("out" in path for _, path in s3.requests), "the other's files were read in vain"
    assert store.records() == []
    assert storage.list_files(storage.join(store.root, "corpus")) == []
    assert storage.list_files(work.out) == sorted(FILES)


def test_a_version_that_appears_during_a_remote_commit_is_kept(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, of, write_new = Store(s3_root), draft(), storage.write_new
    work = begin(store, of)

    def meanwhile(url: str, data: bytes) -> bool:
        monkeypatch.setattr(storage, "write_new", write_new)
        make(store, draft(identity={"first": 1}))
        return write_new(url, data)

    monkeypatch.setattr(storage, "write_new", meanwhile)
    assert store.commit(work, of).id == "corpus/tiny@v2"
    assert store.load("corpus/tiny@v1").identity == {"first": 1}
    for record in store.records():
        store.verify(record)
