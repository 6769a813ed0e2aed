"""What comes from a file, a command line or a configuration and becomes part of a path is validated first."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from made import make
from pydantic import ValidationError

from bitlm import storage
from bitlm.artifacts import FileEntry, InputEntry, Store
from bitlm.artifacts.record import RECORD_FILE, decode, encode
from bitlm.data.shards.units import ShardEntry
from bitlm.errors import ArtifactError
from bitlm_flows.cli.main import main

OUTSIDE = ["..", "../x", "../../x", "/x", "x/../../y", "", ".", "a/b", "a\x00b", "a\nb", "-x", ".x", "x" * 129]


def rewritten(store: Store, artifact_id: str, **changed: Any) -> bytes:
    """The record with other fields and a self-check that fits them, put in its place."""
    data = storage.read_bytes(store.url(artifact_id, RECORD_FILE))
    fields = json.loads(data) | changed | {"record_sha256": ""}
    text = json.dumps(fields, indent=1, ensure_ascii=False).encode() + b"\n"
    digest = hashlib.sha256(text).hexdigest().encode()
    text = text.replace(b'"record_sha256": ""', b'"record_sha256": "%b"' % digest)
    storage.write_atomic(store.url(artifact_id, RECORD_FILE), text)
    return text


def test_rewriting_a_record_unchanged_keeps_it_valid(store: Store) -> None:
    record = make(store)
    assert rewritten(store, record.id) == encode(record)
    assert store.load(record.id) == record


@pytest.mark.parametrize(
    "changed",
    [
        {"stage": "../../x"},
        {"stage": "tokens"},
        {"name": "../x"},
        {"name": "other"},
        {"version": 2},
        {"fingerprint": "../../../x"},
        {"fingerprint": "f" * 63},
        {"inputs": {"corpus": {"id": "../x@v1", "fingerprint": "f" * 64}}},
        {"inputs": {"corpus": {"id": "corpus/x@v1", "fingerprint": "../x"}}},
        {"files": [{"path": "../../x", "bytes": 1, "sha256": "0" * 64}]},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_a_record_that_contradicts_its_id_or_leads_elsewhere_is_refused(store: Store, changed: dict[str, Any]) -> None:
    record = make(store)
    data = rewritten(store, record.id, **changed)
    with pytest.raises(ArtifactError, match=r"^corpus/tiny@v1: artifact.json is not a record: "):
        decode(data, record.id)
    for read in (lambda: store.load(record.id), store.records, lambda: store.verify(record)):
        with pytest.raises(ArtifactError, match=r"^corpus/tiny@v1: artifact.json is not a record: "):
            read()


def test_a_crafted_record_puts_nothing_outside_the_cache(s3_root: str, cache: Path) -> None:
    store = Store(s3_root)
    record = make(store)
    rewritten(store, record.id, stage="../../escaped")
    with pytest.raises(ArtifactError):
        store.read_bytes(store.load(record.id), "a.bin")
    assert not list(cache.parent.parent.glob("escaped*"))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_stage_or_name_leaves_the_root(tmp_path: Path, name: str) -> None:
    store = Store(str(tmp_path / "root"))
    record = make(store)
    for call in (
        lambda: store.ids(name),
        lambda: store.records(name),
        lambda: store.records("corpus", name),
        lambda: store.newest("corpus", name),
        lambda: store.newest(name, "tiny"),
        lambda: store.find("corpus", name, record.fingerprint),
        lambda: store.begin("corpus", name, record.fingerprint),
        lambda: store.begin(name, "tiny", record.fingerprint),
        lambda: store.load(f"corpus/{name}"),
        lambda: store.load(f"corpus/{name}@v1"),
        lambda: store.load(f"{name}/tiny"),
        lambda: store.url(f"corpus/{name}@v1"),
        lambda: store.url("corpus/tiny@v1", "..", name),
    ):
        with pytest.raises(ArtifactError):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert storage.list_folders(store.root) == ["corpus"]


@pytest.mark.parametrize("fingerprint", ["../../x", "f" * 63, ""])
def test_a_fingerprint_that_would_be_a_path_is_refused(local: Store, fingerprint: str) -> None:
    with pytest.raises(ArtifactError, match="fingerprint"):
        local.begin("corpus", "tiny", fingerprint)


def test_folders_that_are_no_artifacts_are_left_out(local: Store) -> None:
    record = make(local)
    for other in ("Not A Stage/x@v1", "corpus/.hidden@v1", "corpus/x y@v1", "corpus/x@v01"):
        storage.write_atomic(storage.join(local.root, other, "f"), b"")
    assert local.ids() == [record.id]


@pytest.mark.parametrize("which", ["../x", "../../x", "..", "corpus/..", "corpus/../../x"])
def test_listing_does_not_leave_the_root(tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "root"))
    record = make(store)
    data = rewritten(store, record.id, id="../x@v1", metrics={"secret": 1})
    storage.write_atomic(str(tmp_path / "x@v1" / RECORD_FILE), data)
    storage.write_atomic(store.url(record.id, RECORD_FILE), encode(record))
    assert main(["artifacts", "list", which, "--root", store.root]) == 1
    shown = capsys.readouterr()
    assert "secret" not in shown.out + shown.err
    assert len(shown.err.strip().splitlines()) == 1


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a\x00b", "", "a//b", "a/."])
def test_paths_in_entries_stay_inside_the_artifact(path: str) -> None:
    plain = {"bytes": 1, "sha256": "0" * 64}
    shard = {"documents": 1, "tokens": 8, "filling": 0, "text_bytes": 4, "unit": 0}
    for make_entry in (
        lambda: FileEntry(path=path, **plain),
        lambda: ShardEntry(path=path, docs="docs", **plain, **shard),
        lambda: ShardEntry(path="x.arrow", docs=path, **plain, **shard),
        lambda: InputEntry(id=path, fingerprint="0" * 64),
    ):
        with pytest.raises(ValidationError):
            make_entry()
    with pytest.raises(ValidationError):
        ShardEntry(path="x.arrow", docs="docs", **plain, **(shard | {"unit": -1}))
