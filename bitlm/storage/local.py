"""Local files: written under another name, flushed to disk, then renamed."""

import contextlib
import os
import secrets
from collections.abc import Iterator

from bitlm.storage.requests import translate_errors

PARTIAL = ".partial~"  # ends the name of a file that is being written


def remove_partial(folder: str) -> None:
    """Remove the unfinished files that killed processes left below a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(PARTIAL):
                os.unlink(os.path.join(parent, name))


def fsync(path: str) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """(relative POSIX path, bytes) of all finished files below a folder."""

    def fail(error: OSError) -> None:
        if not (isinstance(error, FileNotFoundError) and error.filename == folder):
            raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*names, *links]:
            path = os.path.join(parent, name)
            if not name.endswith(PARTIAL):
                yield os.path.relpath(path, folder).replace(os.sep, "/"), os.lstat(path).st_size


@contextlib.contextmanager
def partial_file(url: str, path: str) -> Iterator[str]:
    """A name beside ``path`` to write to and then rename; a file that still has it at the end is removed."""
    with translate_errors(url):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(os.path.dirname(path)) from error
        partial = os.path.join(
            os.path.dirname(path), f".{os.path.basename(path)[:200]}.{secrets.token_hex(4)}{PARTIAL}"
        )
        try:
            yield partial
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
