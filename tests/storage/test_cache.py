import hashlib
import mmap
import os
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlm import storage
from bitlm.errors import ArtifactError, ConfigError, SourceError
from bitlm.storage import cache as module
from bitlm.storage import verified
from bitlm.storage.cache import Cache, CacheFile, Copy, Share, open_cache
from bitlm.storage.local import PARTIAL

SIZES = [100, 250, 250, 40, 400, 10]


class Remote:
    """Files at ``memory://``, and which of them were fetched."""

    def __init__(self) -> None:
        self.root = f"memory://{secrets.token_hex(4)}"
        self.data = [os.urandom(size) for size in SIZES]
        self.fetched: list[str] = []
        for number, data in enumerate(self.data):
            storage.write_atomic(self.url(number), data)

    def url(self, number: int) -> str:
        return storage.join(self.root, f"s/{number}")

    def file(self, number: int) -> CacheFile:
        return CacheFile(f"s/{number}", self.url(number), digest(self.data[number]))

    def take(self, cache: Cache, number: int, wait: bool = False, share: Share | None = None) -> Copy | None:
        copies = self.take_all(cache, [number], wait, share)
        return None if copies is None else copies[0]

    def take_all(
        self, cache: Cache, numbers: Sequence[int], wait: bool = False, share: Share | None = None
    ) -> list[Copy] | None:
        copies = cache.hold([self.file(number) for number in numbers], share, wait)
        for number, copy in zip(numbers, copies or [], strict=copies is not None):
            assert Path(copy.path).read_bytes() == self.data[number]
        return copies


def digest(data: bytes) -> storage.Digest:
    return storage.Digest(len(data), hashlib.sha256(data).hexdigest())


def share(limit: int, *numbers: int) -> Share:
    return Share(frozenset(f"s/{number}" for number in numbers), limit, "some.setting")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    made, read_chunks = Remote(), storage.read_chunks

    def counted(url: str, total: int) -> Iterator[bytes]:
        made.fetched.append(url)
        return read_chunks(url, total)

    monkeypatch.setattr(storage, "read_chunks", counted)
    yield made
    storage.remove_tree(made.root)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "s").iterdir())


@given(
    st.integers(400, 900),
    st.integers(260, 500),
    st.lists(st.tuples(st.integers(0, len(SIZES) - 1), st.booleans()), max_size=40),
)
@settings(deadline=None, max_examples=40)
def test_the_limits_hold_and_what_is_in_use_stays(
    tmp_path_factory: pytest.TempPathFactory, limit: int, share_limit: int, steps: list[tuple[int, bool]]
) -> None:
    """Files 0 to 2 have a share of the cache."""
    folder, remote = tmp_path_factory.mktemp("cache"), Remote()
    cache, used = Cache(str(folder), limit), dict[int, list[Copy]]()
    for number, take in steps:
        if take:
            copy = remote.take(cache, number, share=share(share_limit, 0, 1, 2) if number < 3 else None)
            if copy is None:
                assert number not in used
                in_share = sum(SIZES[other] for other in used if other < 3) + SIZES[number]
                in_all = sum(SIZES[other] for other in used) + SIZES[number]
                assert in_all > limit or (number < 3 and in_share > share_limit)
            else:
                used.setdefault(number, []).append(copy)
        elif used.get(number):
            used[number].pop().release()
            used = {other: copies for other, copies in used.items() if copies}
        assert size_of(folder) <= limit
        assert sum(path.stat().st_size for path in folder.glob("s/[0-2]*")) <= share_limit
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
    assert names(tmp_path) == ["0", "2", "3"]
    remote.take(cache, 1).release()
    assert names(tmp_path) == ["0", "1", "3"]
    assert size_of(tmp_path) <= 600


def test_a_share_takes_no_room_from_the_rest(tmp_path: Path, remote: Remote) -> None:
    cache = Cache(str(tmp_path), 800)
    remote.take(cache, 4).release()
    for number in (0, 1, 2):
        remote.take(cache, number, share=share(300, 0, 1, 2)).release()
    assert names(tmp_path) == ["2", "4"]


def test_what_is_being_fetched_counts_with_its_whole_size(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, begun, go_on = Cache(str(tmp_path), 600), threading.Event(), threading.Event()
    read_chunks = storage.read_chunks

    def slow(url: str, total: int) -> Iterator[bytes]:
        begun.set()
        assert go_on.wait(20)
        yield from read_chunks(url, total)

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


def test_files_that_belong_together_stay_together(tmp_path: Path, remote: Remote) -> None:
    cache = Cache(str(tmp_path), 600)
    copies = remote.take_all(cache, [0, 1, 5])
    assert remote.take(cache, 4) is None
    assert names(tmp_path) == ["0", "1", "5"]
    copies[0].release()
    copies[2].release()
    assert remote.take(cache, 4) is None, "one file of the set is still in use"
    copies[1].release()
    remote.take(cache, 4).release()


def test_sets_that_do_not_fit_together_do_not_block_each_other(tmp_path: Path, remote: Remote) -> None:
    """Each of two threads needs 500 of 600 bytes; one that kept a part of its files would wait for ever."""
    cache, sets = Cache(str(tmp_path), 600), ([1, 2], [0, 4])

    def use(numbers: list[int]) -> int:
        for _ in range(10):
            for copy in remote.take_all(cache, numbers, wait=True):
                assert os.path.exists(copy.path)
                copy.release()
        return len(numbers)

    with ThreadPoolExecutor(2) as pool:
        assert [done.result(120) for done in [pool.submit(use, numbers) for numbers in sets]] == [2, 2]


def test_a_fault_in_one_file_of_a_set_releases_the_others(tmp_path: Path, remote: Remote) -> None:
    cache = Cache(str(tmp_path), 600)
    storage.write_atomic(remote.url(1), b"x" * 250)
    with pytest.raises(ArtifactError, match="s/1 is damaged"):
        remote.take_all(cache, [0, 1, 3], wait=True)
    assert names(tmp_path) == ["0", "3"]
    remote.take(Cache(str(tmp_path), 410), 4).release()
    assert names(tmp_path) == ["4"], "another one was still locked"


def test_a_file_that_is_mapped_stays_readable_after_its_copy_is_removed(tmp_path: Path, remote: Remote) -> None:
    cache = Cache(str(tmp_path), 600)
    copy = remote.take(cache, 4)
    with open(copy.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        copy.release()
        remote.take(cache, 1).release()
        assert not os.path.exists(copy.path)
        assert mapped[:] == remote.data[4]


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    head = """
        import hashlib, os, signal, sys
        from pathlib import Path
        from bitlm import storage
        from bitlm.storage.cache import *
        source, folder = sys.argv[1:3]
        data = Path(source).read_bytes()
        file = CacheFile("s/f", source, storage.Digest(len(data), hashlib.sha256(data).hexdigest()))
        cache, read_chunks = Cache(folder, 600), storage.read_chunks
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that processes fetch from; a local path is a URL as any other."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(400))
    return path


def test_a_process_killed_during_a_fetch_leaves_nothing_that_counts(
    tmp_path: Path, source: Path, remote: Remote
) -> None:
    code = """
        def die(url, total):
            yield data[:200]
            os.kill(os.getpid(), signal.SIGKILL)
        storage.read_chunks = die
        cache.hold([file])
    """
    for _ in range(2):
        killed = child(code, str(source), str(tmp_path / "cache"))
        assert killed.wait(60) == -signal.SIGKILL
        assert names(tmp_path / "cache") == [f"f{PARTIAL}"], "else it did not die in the middle"
    cache = Cache(str(tmp_path / "cache"), 600)
    remote.take(cache, 1).release()  # 250 bytes: the half file of 400 must go
    assert names(tmp_path / "cache") == ["1"]
    file = CacheFile("s/f", str(source), digest(source.read_bytes()))
    assert child(code, str(source), str(tmp_path / "cache")).wait(60) == -signal.SIGKILL
    [copy] = cache.hold([file])
    assert Path(copy.path).read_bytes() == source.read_bytes()
    assert names(tmp_path / "cache") == ["f"]


def test_processes_at_once_fetch_a_file_once(tmp_path: Path, source: Path) -> None:
    code = """
        fetched = []
        def counted(url, total):
            fetched.append(url)
            return read_chunks(url, total)
        storage.read_chunks = counted
        print("ready", flush=True)
        sys.stdin.readline()
        [copy] = cache.hold([file])
        assert Path(copy.path).read_bytes() == data
        print(len(fetched), flush=True)
    """
    processes = [child(code, str(source), str(tmp_path / "cache")) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.stdout.readline() for process in processes) == ["0\n", "0\n", "1\n"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]


def test_the_copies_of_another_process_stay_as_long_as_it_lives(tmp_path: Path, source: Path, remote: Remote) -> None:
    code = """
        copies = cache.hold([file])
        print("holds", flush=True)
        sys.stdin.read()
    """
    folder = tmp_path / "cache"
    other = child(code, str(source), str(folder))
    assert other.stdout.readline() == "holds\n"
    cache = Cache(str(folder), 600)
    assert remote.take(cache, 1) is None
    assert names(folder) == ["f"]
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    remote.take(cache, 1).release()
    assert size_of(folder) == 250


def test_no_room_for_long_is_an_error(tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path), 600)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)
    kept = remote.take(cache, 4)
    with pytest.raises(ConfigError, match=r"may hold 600 bytes, .* no room for s/1: raise BITLM_CACHE_BYTES, or"):
        remote.take(cache, 1, wait=True)
    threading.Timer(0.05, kept.release).start()
    kept = remote.take(cache, 1, wait=True)
    with pytest.raises(ConfigError, match=r"may hold 300 bytes, .* no room for s/0: raise some\.setting, or"):
        remote.take(cache, 0, wait=True, share=share(300, 0, 1))
    kept.release()


def test_what_can_never_fit_is_refused_at_once(tmp_path: Path, remote: Remote) -> None:
    cache = Cache(str(tmp_path), 600)
    with pytest.raises(ConfigError, match=r"take 650 bytes, more than BITLM_CACHE_BYTES = 600: raise"):
        remote.take_all(cache, [1, 4], wait=True)
    with pytest.raises(ConfigError, match=r"take 250 bytes, more than some\.setting = 249: raise some\.setting"):
        remote.take(cache, 1, wait=True, share=share(249, 1))
    assert remote.fetched == []


def test_a_wrong_file_is_refused_and_leaves_nothing(tmp_path: Path, remote: Remote) -> None:
    cache, url = Cache(str(tmp_path), 600), remote.url(1)
    for data, message in ((remote.data[1][::-1], "is damaged"), (remote.data[1][1:], "has 249 bytes instead of 250")):
        storage.write_atomic(url, data)
        with pytest.raises(ArtifactError, match=rf"{url} {message}"):
            remote.take(cache, 1)
    storage.remove_tree(url)
    with pytest.raises(SourceError, match="there is no such file"):
        remote.take(cache, 1)
    assert size_of(tmp_path) == 0
    storage.write_atomic(url, remote.data[1])
    assert remote.take(cache, 1) is not None


def test_a_flipped_byte_in_a_copy_has_it_fetched_again(tmp_path: Path, remote: Remote) -> None:
    cache, path = Cache(str(tmp_path), 600), tmp_path / "s" / "1"
    remote.take(cache, 1).release()
    for time, in_use in enumerate((False, True)):
        held = remote.take(cache, 1) if in_use else None
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        os.utime(path, (time, time))  # the clock of the file system may not have moved on
        remote.take(cache, 1).release()  # compares the bytes
        if held is not None:
            held.release()
    assert len(remote.fetched) == 3


def test_a_copy_is_hashed_once_in_a_process(tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.take(Cache(str(tmp_path), 600), 1).release()
    os.utime(tmp_path / "s" / "1", (0, 0))
    verified._digests.clear()  # as in another process
    hashed, sha256 = [], verified.sha256
    monkeypatch.setattr(verified, "sha256", lambda path: hashed.append(path) or sha256(path))
    for _ in range(3):
        remote.take(Cache(str(tmp_path), 600), 1).release()
    assert hashed == [str(tmp_path / "s" / "1")]
    assert len(remote.fetched) == 1


def test_a_file_that_was_just_written_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time of modification may not tell a second change that follows at once."""
    path = tmp_path / "f"
    path.write_bytes(b"1234")
    then = os.stat(path).st_mtime_ns
    assert verified.digest_once(str(path)) == digest(b"1234")
    path.write_bytes(b"4321")
    os.utime(path, ns=(then, then))
    assert verified.digest_once(str(path)) == digest(b"4321")


def test_the_environment_sets_folder_and_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path))
    monkeypatch.delenv("BITLM_CACHE_BYTES", raising=False)
    cache = open_cache()
    assert Path(cache.folder).parent == tmp_path
    status = os.statvfs(tmp_path)
    assert cache.limit == min(100 * 10**9, status.f_blocks * status.f_frsize // 2)
    monkeypatch.setenv("BITLM_CACHE_BYTES", "12345")
    assert open_cache().limit == 12345
    for wrong in ("0", "-1", "10GB", "1.5"):
        monkeypatch.setenv("BITLM_CACHE_BYTES", wrong)
        with pytest.raises(ConfigError, match=rf"^BITLM_CACHE_BYTES = {wrong}: give a number of bytes"):
            open_cache()


def test_what_else_lies_in_the_folder_is_left_alone(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path))
    monkeypatch.setenv("BITLM_CACHE_BYTES", "400")
    (tmp_path / "own").write_bytes(bytes(1000))
    remote.take(open_cache(), 4).release()
    remote.take(open_cache(), 1).release()
    assert (tmp_path / "own").exists()
