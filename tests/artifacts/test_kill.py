"""Processes that die, or run at once, in the middle of making an artifact."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from made import FILES, begin, draft, make
from s3 import S3

from bitlm import storage
from bitlm.artifacts import Store

TESTS = str(Path(__file__).parents[1])


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    head = f"import os, signal, sys; sys.path[:0] = [{TESTS!r}]\nfrom bitlm import storage\n"
    head += "from bitlm.artifacts import *\nfrom made import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


# Where the process dies: patches a call of the commit to be its last, before or after it is done.
DEATHS = {
    "while hashing": "storage.sha256 = die",
    "before the record": "storage.write_atomic = die",
    "while writing the record": "os.replace = die",
    "before it becomes visible": "os.rename = die",
    "right after it became visible": "rename = os.rename; os.rename = lambda *a: (rename(*a), die())",
    "while removing the work": "os.unlink = lambda p, **k: die() if str(p).endswith('lock') else remove(p, **k)",
    "at the end of removing the work": "os.rmdir = die",
}


@pytest.mark.parametrize("where", DEATHS)
def test_killed_during_a_local_commit(local: Store, where: str) -> None:
    code = f"""
        die, remove = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL), os.unlink
        store, of = Store(sys.argv[1]), draft()
        files = {{"a.bin": b"x" * 5000, "deep/er/b.bin": b"hello"}}
        work = begin(store, of, files)
        {DEATHS[where]}
        store.commit(work, of)
    """
    process = child(code, local.root)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    of = draft()
    seen = local.records()
    for record in seen:  # whatever is visible is whole
        local.verify(record)
    visible = where == "right after it became visible" or "removing" in where
    assert len(seen) == visible
    if visible:
        local.discard(seen[0])
    else:
        work = local.begin(of.stage, of.name, of.fingerprint)  # the lock is free
        assert "a.bin" in storage.list_files(work.out)
        local.verify(local.commit(work, of))
    assert [record.id for record in local.records()] == ["corpus/tiny@v1"]
    assert sorted(os.listdir(local.root)) == ["corpus"], "work was left over"
    names = [p.name for p in Path(local.root).rglob("*") if p.is_file()]
    assert sorted(names) == ["a.bin", "artifact.json", "b.bin"]


@pytest.mark.parametrize("where", ["storage.copy = die", "publish._copy = die", "storage.write_new = last_write"])
def test_killed_during_a_remote_commit(s3: S3, where: str) -> None:
    code = f"""
        from bitlm.artifacts import publish
        die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        write_new = storage.write_new
        last_write = lambda url, data: write_new(url, data) if "claims" in url else die()
        store, of = Store(sys.argv[1]), draft()
        work = begin(store, of)
        {where}
        store.commit(work, of)
    """
    process = child(code, s3.root)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    store, of = Store(s3.root), draft()
    assert store.records() == []
    work = store.begin(of.stage, of.name, of.fingerprint)
    assert storage.list_files(work.out) == sorted(FILES)
    store.verify(store.commit(work, of))
    assert len(store.records()) == 1


def test_the_process_at_work_is_named(store: Store) -> None:
    if store.root.startswith("memory"):
        pytest.skip("memory is not shared between processes")
    process = child(
        "work = begin(Store(sys.argv[1]), draft()); print('ready', flush=True); sys.stdin.read()", store.root
    )
    assert process.stdout.readline() == "ready\n"
    of = draft()
    with pytest.raises(Exception, match=f"being made by process {process.pid} on"):
        store.begin(of.stage, of.name, of.fingerprint)
    process.kill()
    process.wait()
    work = store.begin(of.stage, of.name, of.fingerprint)
    assert storage.list_files(work.out) == sorted(FILES)
    work.release()


def test_processes_that_commit_at_once_get_versions_of_their_own(store: Store) -> None:
    if store.root.startswith("memory"):
        pytest.skip("memory is not shared between processes")
    code = """
        store = Store(sys.argv[1])
        drafts = [draft(identity={"who": sys.argv[2], "n": n}) for n in range(5)]
        works = [begin(store, of, {"f": f"{sys.argv[2]}{of.identity['n']}".encode()}) for of in drafts]
        print("ready", flush=True)
        sys.stdin.readline()
        for work, of in zip(works, drafts):
            store.commit(work, of)
    """
    processes = [child(code, store.root, who) for who in "ab"]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    records = store.records()
    assert [record.version for record in records] == list(range(1, 11))
    for record in records:
        store.verify(record)
        own = f"{record.identity['who']}{record.identity['n']}".encode()
        assert storage.read_bytes(store.url(record.id, "f")) == own
    assert storage.list_folders(store.root) == ["corpus"]


def test_a_version_that_appears_during_the_commit_is_kept(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    of, first = draft(), draft(identity={"first": 1})
    work = begin(local, of)
    rename = os.rename

    def meanwhile(source: str, target: str) -> None:
        monkeypatch.setattr(os, "rename", rename)
        make(local, first)
        rename(source, target)

    monkeypatch.setattr(os, "rename", meanwhile)
    assert local.commit(work, of).id == "corpus/tiny@v2"
    assert local.load("corpus/tiny@v1").identity == {"first": 1}
    for record in local.records():
        local.verify(record)
