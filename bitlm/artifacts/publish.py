"""The last step of making an artifact: all of it becomes visible at once, as the next free version."""

import errno
import os
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bitlm import storage
from bitlm.artifacts.record import RECORD_FILE, Record, encode
from bitlm.artifacts.work import Work
from bitlm.errors import ArtifactError
from bitlm.storage.local import fsync, remove_partial

THREADS = 8
Make = Callable[[int], Record]  # version → record
_A = TypeVar("_A")
_B = TypeVar("_B")


def map_in_threads(work: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
    """``work`` on each item in a few threads: storage requests and hashing release the interpreter lock."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def prepare(out: str) -> None:
    """Remove what killed processes left unfinished in a local ``out``, and wait until the rest is on disk."""
    remove_partial(out)
    for parent, folders, names in os.walk(out, topdown=False):
        for name in [*folders, *names]:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                raise ArtifactError(f"{path} is a link; an artifact holds files only")
        for name in names:
            fsync(os.path.join(parent, name))
        fsync(parent)


def local(root: str, key: str, work: Work, first: int, make: Make) -> Record:
    """Rename the folder, with its record, to the first free version from ``first`` on; only one process gets each."""
    version = first
    os.makedirs(os.path.dirname(storage.join(root, key)), exist_ok=True)
    while True:
        record = make(version)
        storage.write_atomic(storage.join(work.out, RECORD_FILE), encode(record))
        target = storage.join(root, record.id)
        try:
            os.rename(work.out, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            version += 1
        else:
            fsync(os.path.dirname(target))
            return record


def remote(root: str, key: str, work: Work, first: int, make: Make) -> Record:
    """Claim a version by an exclusive create, copy the objects, write the record last.

    A version is taken if its folder holds anything, or if another process has claimed it, even one that was killed.
    """
    version = first
    while True:
        target = storage.join(root, f"{key}@v{version}")
        claim = storage.join(root, ".work/claims", f"{key}@v{version}")
        if storage.write_new(claim, secrets.token_hex(16).encode()):
            try:
                record = make(version)
                if not storage.list_sizes(target) and _copy(work, target, record):
                    return record
            finally:
                storage.remove_tree(claim)
        version += 1


def _copy(work: Work, target: str, record: Record) -> bool:
    """Whether the version was still free at the end. After an error nothing is left below ``target``."""
    try:
        paths = [entry.path for entry in record.files]
        map_in_threads(lambda path: storage.copy(storage.join(work.out, path), storage.join(target, path)), paths)
        if storage.list_sizes(target) != {entry.path: entry.bytes for entry in record.files}:
            raise ArtifactError(f"{record.id}: the copy to {storage.redact(target)} is not complete; run again")
        work.check()
        return storage.write_new(storage.join(target, RECORD_FILE), encode(record))
    except BaseException:
        storage.remove_tree(target)
        raise
