"""Verified local copies of remote files, bounded in bytes and shared by the processes of a machine.

A copy is locked (``flock``) while it is in use, and never removed then; the system frees the lock when the process
dies. Of the others those go first that were used least recently. One process fetches a file while others wait for it.
"""

import fcntl
import hashlib
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from bitlm import storage
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage.files import Digest
from bitlm.storage.local import PARTIAL
from bitlm.storage.locks import is_same_file, lock_file, remove_unlocked
from bitlm.storage.requests import redact, translate_errors
from bitlm.storage.urls import cache_root
from bitlm.storage.verified import digest_once, remember

FOLDER, LIMIT = "BITLM_CACHE", "BITLM_CACHE_BYTES"  # environment variables
DEFAULT_LIMIT = 100 * 10**9  # but never more than half of the file system
GUARD = ".lock"
POLL_SECONDS = 0.1
WAIT_SECONDS = 300.0  # for other processes to release their copies
THREADS = 8  # that fetch and verify the files of one call


@dataclass(frozen=True)
class CacheFile:
    """A file to have a copy of. ``name`` is the path of the copy below the cache's folder."""

    name: str
    url: str
    digest: Digest


@dataclass(frozen=True)
class Share:
    """The copies of these names take at most ``limit`` bytes of the cache, as ``setting`` says."""

    names: frozenset[str]
    limit: int
    setting: str


@dataclass
class Copy:
    """A verified local file. ``lock``: the descriptor whose shared lock keeps it in the cache, if it is in one."""

    path: str
    lock: int | None = None

    def release(self) -> None:
        """Allow the copy to be removed. What is open or mapped stays readable. May be called again."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


class _Unavailable(Enum):
    """Why there is no copy for now."""

    BEING_FETCHED = "another one fetches it"
    NO_ROOM = "the cache is full of files in use"
    NO_ROOM_IN_SHARE = "the share is full of files in use"


@dataclass(frozen=True)
class Cache:
    """At most ``limit`` bytes below ``folder``; a file that is being fetched counts with its whole size."""

    folder: str
    limit: int

    def hold(self, files: Sequence[CacheFile], share: Share | None = None, wait: bool = True) -> list[Copy] | None:
        """Copies of all these files, locked until they are released; what is missing is fetched.

        Either all of them are held or none is, so that processes cannot block each other with a part of what they
        need. While there is no room, or others are fetching: None without ``wait``; with it the call waits, and raises
        ConfigError if there is no room for ``WAIT_SECONDS``.
        Raises ConfigError if the files can never fit, ArtifactError naming the URL where the file is not the expected
        one.
        """
        self._check_size(files, share)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            copies = self._try_all(files, share)
            if isinstance(copies, list):
                return copies
            if not wait:
                return None
            if copies is _Unavailable.BEING_FETCHED:
                deadline = time.monotonic() + WAIT_SECONDS
            elif time.monotonic() > deadline:
                raise ConfigError(self._no_room(files, share if copies is _Unavailable.NO_ROOM_IN_SHARE else None))
            time.sleep(random.uniform(0.5, 1.5) * POLL_SECONDS)

    def _check_size(self, files: Sequence[CacheFile], share: Share | None) -> None:
        size = sum(file.digest.bytes for file in files)
        for limit, setting in ((self.limit, LIMIT), *([(share.limit, share.setting)] if share else [])):
            if size > limit:
                raise ConfigError(
                    f"{files[0].url} and what is used with it take {size:,} bytes, more than {setting} = {limit:,}: "
                    f"raise {setting}"
                )

    def _no_room(self, files: Sequence[CacheFile], share: Share | None) -> str:
        limit, setting = (self.limit, LIMIT) if share is None else (share.limit, share.setting)
        return (
            f"{self.folder} may hold {limit:,} bytes, and what is in use leaves no room for {files[0].name}: raise "
            f"{setting}, or give this run a {FOLDER} of its own"
        )

    def _try_all(self, files: Sequence[CacheFile], share: Share | None) -> list[Copy] | _Unavailable:
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="cache")
        try:
            attempts = [pool.submit(self._try, file, share) for file in files]
            wait_for(attempts)
        finally:
            pool.shutdown(cancel_futures=True)
        errors = [error for attempt in attempts if (error := attempt.exception()) is not None]
        results = [attempt.result() for attempt in attempts if attempt.exception() is None]
        copies = [result for result in results if isinstance(result, Copy)]
        if len(copies) == len(files):
            return copies
        for copy in copies:
            copy.release()
        if errors:
            raise errors[0]
        unavailable = [result for result in results if isinstance(result, _Unavailable)]
        return next((each for each in unavailable if each is not _Unavailable.BEING_FETCHED), unavailable[0])

    def _try(self, file: CacheFile, share: Share | None) -> Copy | _Unavailable:
        path = os.path.join(self.folder, *file.name.split("/"))
        with translate_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            while True:
                copy = self._existing(path, file.digest)
                if copy is not None:
                    return copy
                partial = lock_file(path + PARTIAL, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if partial is None:
                    return _Unavailable.BEING_FETCHED
                unavailable = self._fetch(partial, path, file, share)
                if unavailable is not None:
                    return unavailable

    def _existing(self, path: str, digest: Digest) -> Copy | None:
        """The copy at ``path``, locked and marked as used now. One that is damaged is removed."""
        lock = lock_file(path, os.O_RDONLY, fcntl.LOCK_SH)
        if lock is None:
            return None
        if digest_once(path) == digest:
            os.utime(lock, ns=(time.time_ns(), os.fstat(lock).st_mtime_ns))
            return Copy(path, lock)
        with _guarded(self.folder):
            if is_same_file(path, lock):  # else another process has removed it, and perhaps fetched the right one
                os.unlink(path)
        os.close(lock)
        return None

    def _fetch(self, partial: int, path: str, file: CacheFile, share: Share | None) -> _Unavailable | None:
        """Put the file at ``path``. ``partial`` is the descriptor of the locked partial file, which is closed."""
        try:
            if os.path.exists(path):  # another process finished it since we looked
                return None
            unavailable = self._reserve(partial, file.digest.bytes, share)
            if unavailable is None:
                _download(file, partial)
                os.replace(path + PARTIAL, path)
                remember(path, partial, file.digest)
            return unavailable
        finally:
            if is_same_file(path + PARTIAL, partial):  # it was not renamed
                os.unlink(path + PARTIAL)
            os.close(partial)

    def _reserve(self, partial: int, size: int, share: Share | None) -> _Unavailable | None:
        """Give the partial file its size if there is room or can be made; one process at a time does so."""
        with _guarded(self.folder):
            os.ftruncate(partial, 0)  # what a process that died left in it
            if share is not None:
                own = [used for used in _list(self.folder) if used.name in share.names]
                if not _shrink(own, share.limit - size):
                    return _Unavailable.NO_ROOM_IN_SHARE
            if not _shrink(_list(self.folder), self.limit - size):
                return _Unavailable.NO_ROOM
            os.ftruncate(partial, size)
            return None


def open_cache() -> Cache:
    """The cache of this machine, as the environment says. Raises ConfigError for a limit that is no number of bytes."""
    folder = os.path.join(cache_root(), "files")  # of its own: what else is in the root is never removed
    with translate_errors(folder):
        os.makedirs(folder, exist_ok=True)
        text = os.environ.get(LIMIT)
        if not text:
            return Cache(folder, min(DEFAULT_LIMIT, shutil.disk_usage(folder).total // 2))
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"{LIMIT} = {text}: give a number of bytes, for example {DEFAULT_LIMIT}")
    return Cache(folder, int(text))


@dataclass(frozen=True, order=True)
class _CachedFile:
    """A file of the cache; one that is being fetched has the name of what it will be."""

    used_ns: int
    bytes: int
    path: str
    name: str


def _download(file: CacheFile, descriptor: int) -> None:
    size = storage.size(file.url)
    if size != file.digest.bytes:
        raise ArtifactError(f"{redact(file.url)} {storage.describe_mismatch(Digest(size, ''), file.digest)}")
    digest, position = hashlib.sha256(), 0
    for chunk in storage.read_chunks(file.url, size):
        digest.update(chunk)
        rest = memoryview(chunk)
        while rest:
            written = os.pwrite(descriptor, rest, position)
            rest, position = rest[written:], position + written
    actual = Digest(position, digest.hexdigest())
    if actual != file.digest:
        raise ArtifactError(f"{redact(file.url)} {storage.describe_mismatch(actual, file.digest)}")


@contextmanager
def _guarded(folder: str) -> Iterator[None]:
    guard = lock_file(os.path.join(folder, GUARD), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
    assert guard is not None, "the guard is never removed"
    try:
        yield
    finally:
        os.close(guard)


def _list(folder: str) -> list[_CachedFile]:
    """The files of the cache, the least recently used first."""
    files = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if name != GUARD:
                with suppress(FileNotFoundError):
                    status = os.stat(path)
                    relative = os.path.relpath(path, folder).removesuffix(PARTIAL)
                    files.append(_CachedFile(status.st_atime_ns, status.st_size, path, relative))
    return sorted(files)


def _shrink(files: Sequence[_CachedFile], limit: int) -> bool:
    """Remove files from the front, unless they are in use, until the rest takes at most ``limit`` bytes."""
    total = sum(file.bytes for file in files)
    for file in files:
        if total <= limit:
            break
        if remove_unlocked(file.path):
            total -= file.bytes
    return total <= limit
