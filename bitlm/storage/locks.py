"""Locks on local files that end with their process (``flock``), where files may be removed at any moment."""

import fcntl
import os
from contextlib import suppress


def lock_file(path: str, flags: int, operation: int) -> int | None:
    """The descriptor of the locked file, to be closed; ``flags`` are those of ``os.open``.

    None if there is no such file, if it was removed before it was locked, and with ``LOCK_NB`` if it is locked already.
    """
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, operation)
        if is_same_file(path, descriptor):
            return descriptor
    os.close(descriptor)
    return None


def is_same_file(path: str, descriptor: int) -> bool:
    """Whether ``path`` still names the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def remove_unlocked(path: str) -> bool:
    """Remove a file unless it is locked; whether it is gone."""
    descriptor = lock_file(path, os.O_RDONLY, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return not os.path.exists(path)
    os.unlink(path)
    os.close(descriptor)
    return True
