import fcntl
import os
from pathlib import Path

import pytest
from made import FILES, begin, draft, make

from bitlm import storage
from bitlm.artifacts import Store
from bitlm.artifacts.record import encode
from bitlm.artifacts.work import Work
from bitlm.errors import ArtifactError, SourceError


def folders(store: Store) -> list[str]:
    return storage.list_folders(store.root)


def test_made_found_and_read_again(store: Store) -> None:
    of = draft()
    assert store.find("corpus", "tiny", of.fingerprint) is None
    assert store.newest("corpus", "tiny") is None
    assert store.records() == []
    record = make(store, of)
    assert record.id == "corpus/tiny@v1"
    again = Store(store.root)
    assert again.find("corpus", "tiny", of.fingerprint) == record
    assert again.load("corpus/tiny") == again.load("corpus/tiny@v1") == record
    assert again.records() == [record]
    again.verify(record)
    for path, data in FILES.items():
        assert again.read_bytes(record, path) == data
    with again.local_folder(record, "deep") as folder:
        assert Path(folder, "er/b.bin").read_bytes() == b"hello"
    assert folders(store) == ["corpus"], "work was left over"
    assert sorted(storage.list_files(store.root)) == sorted(f"{record.id}/{p}" for p in [*FILES, "artifact.json"])


def test_versions_count_up_and_sort_by_number(store: Store) -> None:
    made = [make(store, draft(identity={"n": n}), {"f": b"%d" % n}) for n in range(2)]
    storage.write_atomic(store.url("corpus/tiny@v9", "f"), b"left by another")
    made += [make(store, draft(identity={"n": n}), {"f": b"%d" % n}) for n in range(2, 4)]
    assert [record.version for record in made] == [1, 2, 10, 11]
    other = make(store, draft(name="other"), {"f": b""})
    assert store.records("corpus", "tiny") == made
    assert store.records() == sorted([*made, other], key=lambda r: (r.stage, r.name, r.version))
    assert store.records("tokens") == []
    assert store.newest("corpus", "tiny") == made[-1]
    assert store.find("corpus", "tiny", made[2].fingerprint) == made[2]
    assert store.find("corpus", "other", made[2].fingerprint) is None


def test_an_unknown_id_names_near_ones(store: Store) -> None:
    make(store, files={"f": b""})
    for wrong in ("corpus/tinny", "corpus/tiny@v2"):
        with pytest.raises(ArtifactError, match=rf"no artifact {wrong} in .*near: corpus/tiny@v1"):
            store.load(wrong)
    for wrong in ("tiny", "corpus/tiny@v0", "corpus/tiny@1", "../corpus/tiny@v1", "a/b/c"):
        with pytest.raises(ArtifactError, match="expected stage/name@vN"):
            store.load(wrong)


def test_a_folder_without_record_is_no_artifact(store: Store) -> None:
    storage.write_atomic(store.url("corpus/tiny@v1", "a.bin"), b"half")
    assert store.records() == []
    assert store.newest("corpus", "tiny") is None
    with pytest.raises(ArtifactError, match="corpus/tiny@v1 is incomplete"):
        store.load("corpus/tiny@v1")
    assert make(store).id == "corpus/tiny@v2", "nothing that is there may be overwritten"
    assert storage.read_bytes(store.url("corpus/tiny@v1", "a.bin")) == b"half"


@pytest.mark.parametrize("path", ["a.bin", "deep/er/b.bin"])
def test_a_flipped_byte_is_refused_by_name(store: Store, path: str) -> None:
    record = make(store)
    data = bytearray(FILES[path])
    data[len(data) // 2] ^= 1
    storage.write_atomic(store.url(record.id, path), bytes(data))
    store.verify(record, contents=False)
    for check in (lambda: store.verify(record), lambda: store.read_bytes(record, path)):
        with pytest.raises(ArtifactError, match=rf"corpus/tiny@v1.*{path}.*damaged: sha256"):
            check()


def test_wrong_set_of_files_is_refused_by_name(store: Store) -> None:
    record = make(store)
    for contents in (True, False):
        storage.write_atomic(store.url(record.id, "extra/x"), b"1")
        with pytest.raises(ArtifactError, match=r"corpus/tiny@v1: extra/x does not belong"):
            store.verify(record, contents)
        storage.remove_tree(store.url(record.id, "extra"))
        store.verify(record, contents)
        storage.write_atomic(store.url(record.id, "a.bin"), FILES["a.bin"][:-1])
        with pytest.raises(ArtifactError, match=r"corpus/tiny@v1: a.bin has 4,999 bytes instead of 5,000"):
            store.verify(record, contents)
        storage.remove_tree(store.url(record.id, "a.bin"))
        with pytest.raises(ArtifactError, match=r"corpus/tiny@v1: a.bin is missing"):
            store.verify(record, contents)
        storage.write_atomic(store.url(record.id, "a.bin"), FILES["a.bin"])
    storage.remove_tree(store.url(record.id, "empty"))
    with pytest.raises((ArtifactError, SourceError), match=r"corpus/tiny@v1.*empty.*(is missing|no such file)"):
        store.read_bytes(record, "empty")
    with pytest.raises(ArtifactError, match="corpus/tiny@v1 has no file nope"):
        store.read_bytes(record, "nope")


def test_a_damaged_record_stops_every_reader_by_name(store: Store) -> None:
    record, of = make(store), draft()
    url = store.url(record.id, "artifact.json")
    data = storage.read_bytes(url)
    storage.write_atomic(url, data.replace(b'"documents": 3', b'"documents": 4'))
    for read in (
        lambda: store.load("corpus/tiny"),
        lambda: store.records(),
        lambda: store.find("corpus", "tiny", of.fingerprint),
        lambda: store.verify(record),
    ):
        with pytest.raises(ArtifactError, match=r"corpus/tiny@v1: artifact.json is damaged"):
            read()
    storage.remove_tree(url)
    with pytest.raises(ArtifactError, match=r"corpus/tiny@v1: artifact.json is missing"):
        store.verify(record)


def test_another_valid_record_in_its_place_is_refused(store: Store) -> None:
    record = make(store)
    changed = record.model_copy(update={"metrics": {"documents": 99}})
    storage.write_atomic(store.url(record.id, "artifact.json"), encode(changed))
    with pytest.raises(ArtifactError, match="has changed"):
        store.verify(record)


def test_nothing_to_commit(store: Store) -> None:
    of = draft()
    with pytest.raises(ArtifactError, match="corpus/tiny: nothing was written"):
        store.commit(begin(store, of, {}), of)


def test_a_link_is_not_committed(local: Store) -> None:
    of = draft()
    work = begin(local, of)
    os.symlink("/etc/hostname", os.path.join(work.out, "link"))
    with pytest.raises(ArtifactError, match="link is a link"):
        local.commit(work, of)


def test_metrics_without_a_stable_form_are_refused(store: Store) -> None:
    of = draft(metrics={"loss": float("nan")})
    with pytest.raises(TypeError, match=r"metrics\.loss"):
        store.commit(begin(store, of), of)
    assert store.records() == []


def test_work_is_kept_until_the_commit(store: Store) -> None:
    of = draft()
    begin(store, of).release()
    work = store.begin(of.stage, of.name, of.fingerprint)
    assert storage.list_files(work.out) == sorted(FILES)
    assert storage.list_files(work.scratch) == ["notes"]
    record = store.commit(work, of)
    store.verify(record)
    work.release()
    assert folders(store) == ["corpus"]


def test_other_work_is_left_alone(store: Store) -> None:
    of, other = draft(), draft(identity={"another": 1})
    still = begin(store, other)
    make(store, of)
    assert storage.list_files(still.out) == sorted(FILES)
    store.verify(store.commit(still, other))


def test_the_same_work_is_refused_while_it_goes_on(store: Store) -> None:
    of = draft()
    work = begin(store, of)
    with pytest.raises(
        ArtifactError, match=rf"corpus/tiny \({of.fingerprint[:8]}\) is being made by process {os.getpid()} on"
    ):
        store.begin(of.stage, of.name, of.fingerprint)
    store.begin(of.stage, of.name, "f" * 64).release()
    work.release()
    work.release()
    store.begin(of.stage, of.name, of.fingerprint).release()


def test_a_lock_on_a_file_that_was_removed_does_not_count(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    of, flock, calls = draft(), fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not calls:  # another process ends its work between the opening of the file and the lock
            os.unlink(next(Path(local.root).rglob("lock")))
        calls.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    work = local.begin(of.stage, of.name, of.fingerprint)
    assert len(calls) == 2
    with pytest.raises(ArtifactError, match="is being made by process"):
        local.begin(of.stage, of.name, of.fingerprint)
    work.release()


def test_work_where_no_folder_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(ArtifactError, match="no folder can be made there; choose another root"):
        Work(str(tmp_path / "link" / "work"), "it")


def test_a_relative_root_does_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("root")
    record = make(store)
    monkeypatch.chdir("/")
    store.verify(record)
    with store.local_file(record, "a.bin") as path:
        assert Path(path).is_relative_to(tmp_path)


def test_a_wrong_fingerprint_is_a_defect(local: Store) -> None:
    of = draft()
    wrong = draft(identity={"other": 1})
    work = begin(local, of)
    with pytest.raises(AssertionError):
        local.commit(work, type(of)(**{**vars(of), "fingerprint": wrong.fingerprint}))
