"""Copies of remote files in a local folder of bounded size, which the processes of a machine share."""

import fcntl
import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass

from bitlm import storage
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage.local import PARTIAL
from bitlm.storage.requests import redact, translate_errors

POLL_SECONDS = 0.1
WAIT_SECONDS = 300.0  # for other processes to let go of their copies


@dataclass
class Copy:
    """A verified local file. ``lock``: the descriptor whose shared lock keeps it in its cache, if it is in one."""

    path: str
    lock: int | None = None

    def release(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


class Cache:
    """At most ``limit`` bytes below ``folder``; a file that is being fetched counts with its whole size.

    A copy in use is locked and never removed; the system frees the lock when the process dies. Of the others those go
    first that were used least recently. Each process verifies a copy before it uses it for the first time.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._verified: dict[str, tuple[int, int, int]] = {}  # path → the state of the file that was verified

    def take(self, name: str, url: str, expect: tuple[int, str], wait: bool = True) -> Copy | None:
        """A copy of the file at ``url``, fetched where there is none yet; ``expect`` is its (bytes, sha256).

        While others fetch it, or what is in use leaves no room: None at once; with ``wait`` later, and a ConfigError
        where no room comes.
        Raises ArtifactError naming the URL where the file there is not the expected one.
        """
        assert expect[0] <= self.limit, (name, expect, self.limit)
        path = os.path.join(self.folder, *name.split("/"))
        deadline = time.monotonic() + WAIT_SECONDS
        with translate_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            while True:
                copy = self._present(path, expect)
                if copy is not None:
                    return copy
                partial = _locked(path + PARTIAL, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if partial is None:  # another one fetches it
                    deadline = time.monotonic() + WAIT_SECONDS
                elif self._fetch(partial, path, url, expect):
                    continue
                if not wait:
                    return None
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{self.folder} may hold {self.limit:,} bytes, and what is in use leaves no room for {name}: "
                        "raise pretrain.execution.cache_bytes, or give this run a BITLM_CACHE of its own"
                    )
                time.sleep(POLL_SECONDS)

    def _present(self, path: str, expect: tuple[int, str]) -> Copy | None:
        """The copy that is there, locked and marked as used now. One that is damaged is removed."""
        lock = _locked(path, os.O_RDONLY, fcntl.LOCK_SH)
        if lock is None:
            return None
        if self._verified.get(path) != _state(lock):
            if storage.sha256(path) != expect:
                os.unlink(path)
                os.close(lock)
                return None
            self._verified[path] = _state(lock)
        os.utime(lock, ns=(time.time_ns(), os.fstat(lock).st_mtime_ns))
        return Copy(path, lock)

    def _fetch(self, lock: int, path: str, url: str, expect: tuple[int, str]) -> bool:
        """Whether the file is at ``path`` now; False where there is no room. Closes ``lock``, of the partial file."""
        try:
            if os.path.exists(path):  # since a moment ago
                return True
            if not self._reserve(lock, expect[0]):
                return False
            _fill(lock, url, expect)
            os.replace(path + PARTIAL, path)
            self._verified[path] = _state(lock)
            return True
        finally:
            with suppress(FileNotFoundError):  # ours as long as it is locked, unless it was renamed
                if os.path.samestat(os.stat(path + PARTIAL), os.fstat(lock)):
                    os.unlink(path + PARTIAL)
            os.close(lock)

    def _reserve(self, lock: int, size: int) -> bool:
        """Give the file its size, where the others leave room for it or can be made to. One process at a time."""
        guard = _locked(os.path.join(self.folder, ".lock"), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        assert guard is not None, "the guard is never removed"
        try:
            os.ftruncate(lock, 0)  # what a process that died left there
            found = sorted(_files(self.folder))
            excess = sum(bytes for _, bytes, _ in found) + size - self.limit
            for _, bytes, path in found:
                if excess <= 0:
                    break
                if _removed(path):
                    excess -= bytes
            if excess <= 0:
                os.ftruncate(lock, size)
            return excess <= 0
        finally:
            os.close(guard)


def _fill(file: int, url: str, expect: tuple[int, str]) -> None:
    size = storage.size(url)
    if size != expect[0]:
        raise ArtifactError(f"{redact(url)} {storage.describe_mismatch((size, ''), expect)}")
    digest, position = hashlib.sha256(), 0
    for piece in storage.read_chunks(url, size):
        digest.update(piece)
        view = memoryview(piece)
        while view:
            written = os.pwrite(file, view, position)
            view, position = view[written:], position + written
    if (position, digest.hexdigest()) != expect:
        raise ArtifactError(f"{redact(url)} {storage.describe_mismatch((position, digest.hexdigest()), expect)}")


def _locked(path: str, flags: int, kind: int) -> int | None:
    """Descriptor of the file, locked; None where there is none, where it went before it was locked, and where another
    holds a lock on it that we are not to wait for."""
    try:
        lock = os.open(path, flags, 0o666)
    except FileNotFoundError:
        return None
    with suppress(FileNotFoundError, BlockingIOError):
        fcntl.flock(lock, kind)
        if os.path.samestat(os.stat(path), os.fstat(lock)):
            return lock
    os.close(lock)
    return None


def _removed(path: str) -> bool:
    """Remove a file unless it is in use."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(lock)
    return True


def _files(folder: str) -> list[tuple[int, int, str]]:
    """(time of last use, bytes, path) of the files of a cache."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                path = os.path.join(parent, name)
                state = os.stat(path)
                found.append((state.st_atime_ns, state.st_size, path))
    return [file for file in found if not file[2].endswith(".lock")]


def _state(file: int) -> tuple[int, int, int]:
    state = os.fstat(file)
    return state.st_ino, state.st_size, state.st_mtime_ns
