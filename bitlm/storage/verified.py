"""Digests of local files, each computed before the first use of the file in a process, and again when it has changed.

A change is seen by inode, size and modification time. What this misses: bytes that a disk loses, or that a program
writes and then sets the old modification time, after the first use.
"""

import os
import time

from bitlm.storage.files import Digest, sha256

SETTLED_NS = 100_000_000  # a file that was modified later than this before it was read may still change unnoticed

State = tuple[int, int, int, int]
_digests: dict[str, tuple[State, Digest]] = {}


def digest_once(path: str) -> Digest:
    """The digest of a local file, as it is now or as it was when this process computed it."""
    before = os.stat(path)
    known = _digests.get(path)
    if known is not None and known[0] == state_of(before):
        return known[1]
    now, digest = time.time_ns(), sha256(path)
    if now - before.st_mtime_ns > SETTLED_NS:
        _digests[path] = (state_of(before), digest)
    return digest


def remember(path: str, file: int, digest: Digest) -> None:
    """Take the digest of a file that this process has just written, open as the descriptor ``file``, as computed."""
    _digests[path] = (state_of(os.fstat(file)), digest)


def state_of(status: os.stat_result) -> State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
