import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlm import storage
from bitlm.errors import ArtifactError, ConfigError, SourceError
from bitlm.storage import cache as module
from bitlm.storage.cache import Cache, Copy
from bitlm.storage.local import PARTIAL

SIZES = [100, 250, 250, 40, 400, 10]


class Remote:
    """Files at ``memory://``, and what was asked of them."""

    def __init__(self) -> None:
        self.root = f"memory://{secrets.token_hex(4)}"
        self.data = [os.urandom(size) for size in SIZES]
        self.fetched: list[str] = []
        for number, data in enumerate(self.data):
            storage.write_atomic(self.url(number), data)

    def url(self, number: int) -> str:
        return storage.join(self.root, f"s/{number}")

    def take(self, cache: Cache, number: int, wait: bool = False) -> Copy | None:
        data = self.data[number]
        expect = (len(data), hashlib.sha256(data).hexdigest())
        copy = cache.take(f"s/{number}", self.url(number), expect, wait)
        assert copy is None or Path(copy.path).read_bytes() == data
        return copy


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    made, pieces = Remote(), storage.read_chunks

    def counted(url: str, total: int) -> Iterator[bytes]:
        made.fetched.append(url)
        return pieces(url, total)

    monkeypatch.setattr(storage, "read_chunks", counted)
    yield made
    storage.remove_tree(made.root)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@given(st.integers(400, 900), st.lists(st.tuples(st.integers(0, len(SIZES) - 1), st.booleans()), max_size=40))
@settings(deadline=None, max_examples=40)
def test_the_limit_holds_and_what_is_in_use_stays(
    tmp_path_factory: pytest.TempPathFactory, limit: int, steps: list[tuple[int, bool]]
) -> None:
    folder, remote = tmp_path_factory.mktemp("cache"), Remote()
    cache, used = Cache(str(folder), limit), dict[int, list[Copy]]()
    for number, take in steps:
        if take:
            copy = remote.take(cache, number)
            if copy is None:
                assert number not in used
                assert sum(SIZES[other] for other in used) + SIZES[number] > limit
            else:
                used.setdefault(number, []).append(copy)
        elif used.get(number):
            used[number].pop().release()
            used = {other: copies for other, copies in used.items() if copies}
        assert size_of(folder) <= limit
        assert all(os.path.exists(copy.path) for copies in used.values() for copy in copies)
    for copies in used.values():
        for copy in copies:
            copy.release()
    assert remote.take(cache, 4) is not None


def test_the_least_recently_used_goes_first_and_comes_again(tmp_path: Path, remote: Remote) -> None:
    cache = Cache(str(tmp_path), 600)
    for number in (0, 1, 2, 0):
        remote.take(cache, number).release()
    remote.take(cache, 3).release()
    assert remote.fetched == [remote.url(number) for number in (0, 1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["0", "2", "3"]
    remote.take(cache, 1).release()
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["0", "1", "3"]
    assert size_of(tmp_path) <= 600


def test_what_is_being_fetched_counts_with_its_whole_size(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, begun, go_on, pieces = Cache(str(tmp_path), 600), threading.Event(), threading.Event(), storage.read_chunks

    def slow(url: str, total: int) -> Iterator[bytes]:
        begun.set()
        assert go_on.wait(20)
        yield from pieces(url, total)

    monkeypatch.setattr(storage, "read_chunks", slow)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(remote.take, cache, 4, True)
        assert begun.wait(20)
        assert size_of(tmp_path) == 400
        assert remote.take(cache, 1) is None
        assert remote.take(cache, 4) is None, "it is not there yet, and is not to be fetched twice"
        go_on.set()
        coming.result().release()
    assert size_of(tmp_path) == 400
    remote.take(cache, 1).release()
    assert size_of(tmp_path) == 250


def test_many_at_once_fetch_a_file_once(tmp_path: Path, remote: Remote) -> None:
    caches = [Cache(str(tmp_path), 600) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda cache: remote.take(cache, 2, True), caches))
    assert remote.fetched == [remote.url(2)]
    for copy in copies:
        copy.release()


def test_the_copies_of_another_process_stay_as_long_as_it_lives(tmp_path: Path, remote: Remote) -> None:
    cache = Cache(str(tmp_path), 600)
    remote.take(cache, 4).release()
    abandoned = tmp_path / "s" / f"5{PARTIAL}"
    abandoned.write_bytes(bytes(10))
    hold = "import fcntl, sys, time; fcntl.flock(f := open(sys.argv[1]), fcntl.LOCK_SH); print(flush=True)"
    code = f"{hold}; time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s" / "4")], stdout=subprocess.PIPE)
    other.stdout.readline()
    assert remote.take(cache, 1) is None
    assert not abandoned.exists()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    remote.take(cache, 1).release()
    assert size_of(tmp_path) == 250


def test_no_room_for_long_is_told(tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path), 600)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)
    kept = remote.take(cache, 4)
    with pytest.raises(ConfigError, match=r"may hold 600 bytes, and what is in use leaves no room for s/1: raise"):
        remote.take(cache, 1, wait=True)
    threading.Timer(0.05, kept.release).start()
    remote.take(cache, 1, wait=True).release()


def test_a_wrong_file_is_refused_and_leaves_nothing(tmp_path: Path, remote: Remote) -> None:
    cache, url = Cache(str(tmp_path), 600), remote.url(1)
    for data, told in ((remote.data[1][::-1], "is damaged"), (remote.data[1][1:], "has 249 bytes instead of 250")):
        storage.write_atomic(url, data)
        with pytest.raises(ArtifactError, match=rf"{url} {told}"):
            remote.take(cache, 1)
    storage.remove_tree(url)
    with pytest.raises(SourceError, match="there is no such file"):
        remote.take(cache, 1)
    assert size_of(tmp_path) == 0
    storage.write_atomic(url, remote.data[1])
    assert remote.take(cache, 1) is not None


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, remote: Remote) -> None:
    remote.take(Cache(str(tmp_path), 600), 1).release()
    path = tmp_path / "s" / "1"
    path.write_bytes(bytes(250))
    cache = Cache(str(tmp_path), 600)
    remote.take(cache, 1).release()
    path.write_bytes(bytes(250))
    remote.take(cache, 1).release()
    assert len(remote.fetched) == 3
