"""The folder in which one artifact is being made. It survives a kill: the next run makes only what is missing."""

import fcntl
import itertools
import json
import os
import secrets
import socket
from typing import Any

import psutil

from bitlm import storage
from bitlm.errors import ArtifactError
from bitlm.storage import Digest
from bitlm.storage.locks import is_same_file
from bitlm.storage.requests import translate_errors

ATTEMPTS = 100  # to lock a file that others remove

_held: set[str] = set()  # tokens of this process's work on object stores


class BusyError(ArtifactError):
    """Another process is making the artifact."""


class Work:
    """``out`` becomes the artifact; ``scratch`` is private and kept until the commit. Both are URLs.

    On a local root a file lock is held until ``release``; the system frees it when the process dies. An object store
    has no such lock: there an object names the owner. While the owner is a live process of this machine, others are
    refused; any other owner loses the work to the next process that opens it, and is refused when it commits.
    """

    def __init__(self, folder: str, label: str) -> None:
        """Raises BusyError, naming the process, while another one has the work open."""
        self.folder = folder
        self.label = label
        self.out = storage.join(folder, "out")
        self.scratch = storage.join(folder, "scratch")
        self.digests: dict[str, Digest] = {}  # of files in ``out`` that were computed while writing
        self._lock: int | None = None
        self._token: str | None = None
        if storage.is_local(folder):
            with translate_errors(folder):
                self._lock = _lock(folder, label)
                for part in (self.out, self.scratch):
                    os.makedirs(part, exist_ok=True)
        else:
            self._token = _own(storage.join(folder, "owner"), label)

    def check(self) -> None:
        """Raises BusyError if another process has become the owner in the meantime (object stores)."""
        owner = _owner(storage.join(self.folder, "owner")) if self._token else None
        if self._token and (owner is None or owner["token"] != self._token):
            holder = _describe(owner) if owner else "another process, which has ended"
            raise BusyError(f"{self.label} was taken up by {holder}; this process stops, run again to see the result")

    def release(self) -> None:
        """Let other processes open the work; what was written stays. May be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._token is not None:
            _held.discard(self._token)

    def remove(self) -> None:
        """Remove all of it, and the parents that this leaves empty; then release it."""
        for part in (self.out, self.scratch):
            storage.remove_tree(part)
        if self._lock is not None:
            os.unlink(os.path.join(self.folder, "lock"))
            _remove_empty(self.folder, 3)
        else:
            storage.remove_tree(storage.join(self.folder, "owner"))
        self.release()


def _remove_empty(folder: str, levels: int) -> None:
    """Remove a folder and its parents, ``levels`` in all, as long as they are empty."""
    for _ in range(levels):
        try:
            os.rmdir(folder)
        except OSError:  # not empty: another process is at work there
            return
        folder = os.path.dirname(folder)


def _lock(folder: str, label: str) -> int:
    """Descriptor of the locked file. Raises BusyError that names the process which holds the lock, and ArtifactError
    where no file can be made."""
    path = os.path.join(folder, "lock")
    for attempt in itertools.count():
        # Between any two steps another process may finish the work and remove the file, its folder and their parents.
        try:
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if attempt < ATTEMPTS:
                continue  # else nothing is removed, but nothing can be made: below a link that leads nowhere, say
            raise ArtifactError(f"{folder}: no folder can be made there; choose another root") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode() or "another process"
            os.close(descriptor)
            raise BusyError(f"{label} is being made by {holder}; wait for it, or stop it") from None
        if is_same_file(path, descriptor):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)


def _own(url: str, label: str) -> str:
    """Become the owner; returns the token. Raises BusyError while another live process of this machine is the owner."""
    owner = _owner(url)
    if owner is not None and _alive(owner):
        raise BusyError(f"{label} is being made by {_describe(owner)}; wait for it, or stop it")
    token = secrets.token_hex(16)
    born = psutil.Process().create_time()
    mine = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "born": born}
    storage.write_atomic(url, json.dumps(mine).encode())
    _held.add(token)
    return token


def _owner(url: str) -> dict[str, Any] | None:
    data = storage.read_if_exists(url)
    return None if data is None else json.loads(data)


def _alive(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return False
    if owner["pid"] == os.getpid():
        return owner["token"] in _held
    try:  # process ids are reused; the time of creation identifies the process
        return psutil.Process(owner["pid"]).create_time() == owner["born"]
    except psutil.NoSuchProcess:
        return False


def _describe(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}"
