"""Files at URLs. What is written appears whole or not at all.

A request that fails with a transient error is retried a few times; any other failure (no such bucket, access denied)
is raised at once as a SourceError that names the URL and the remedy.
"""

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from bitlm.errors import SourceError
from bitlm.storage.local import fsync, partial_file, walk
from bitlm.storage.reading import RemoteFile
from bitlm.storage.requests import NotFoundError, already_exists, redact, request, translate_errors
from bitlm.storage.urls import filesystem, is_local, local_path

FOLDER_MARKER = "_$folder$"  # ends the name of an empty object that stands for a folder
CHUNK_BYTES = 32 * 2**20  # bytes per ranged read of a remote object


class Digest(NamedTuple):
    """What a file holds, in brief; ``sha256`` in hexadecimal digits."""

    bytes: int
    sha256: str


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    with contextlib.suppress(NotFoundError):
        return bool(request(url, fs.info, path))
    return False


def size(url: str) -> int:
    """Bytes of a file. Raises SourceError if there is none, or if it is a folder."""
    fs, path = filesystem(url)
    info = request(url, fs.info, path)
    if info["type"] == "directory":
        raise SourceError(f"{redact(url)} is a folder, not a file")
    return info["size"]


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return request(url, fs.cat_file, path)


def read_if_exists(url: str) -> bytes | None:
    with contextlib.suppress(NotFoundError):
        return read_bytes(url)
    return None


def open_read(url: str, read_ahead: int = 0) -> BinaryIO:
    """A file to read and seek in; on a remote store each read is a request, retried after transient errors.
    ``read_ahead``: bytes per request for a file that is read in small steps."""
    fs, path = filesystem(url)
    if is_local(url):
        with translate_errors(url):
            return open(path, "rb")
    opened = request(url, fs.open, path, "rb", cache_type="none")
    if isinstance(opened, io.BufferedRandom):  # a local copy, since an HTTP server sends no part of a file
        return opened
    file = RemoteFile(url, opened)
    return io.BufferedReader(file, read_ahead) if read_ahead else file


def write_atomic(url: str, data: bytes) -> None:
    """Write a whole file, replacing what was there; readers see the old bytes or the new ones, never a part."""
    fs, path = filesystem(url)
    if not is_local(url):
        request(url, fs.pipe_file, path, data)
        return
    with partial_file(url, path) as partial:
        with open(partial, "xb") as file:
            file.write(data)
        fsync(partial)
        os.replace(partial, path)
    fsync(os.path.dirname(path))


def write_new(url: str, data: bytes) -> bool:
    """Write a whole file unless it exists; whether it was written. Of several writers at once one succeeds."""
    fs, path = filesystem(url)
    if is_local(url):
        with partial_file(url, path) as partial:
            with open(partial, "xb") as file:
                file.write(data)
            fsync(partial)
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
        fsync(os.path.dirname(path))
        return True
    # A retry may find the object of its own first attempt, whose response was lost; the mark identifies it.
    mark = secrets.token_hex(16)
    options = {"Metadata": {"writer": mark}} if "s3" in fs.protocol else {}
    try:
        request(url, fs.pipe_file, path, data, mode="create", **options)
    except OSError as error:
        if not already_exists(error):
            raise
        return bool(options) and request(url, fs.metadata, path).get("writer") == mark
    return True


def list_sizes(url: str) -> dict[str, int]:
    """Relative POSIX path → bytes of all files below a folder, sorted by path; empty when the folder is absent.

    Local files that are still being written (or were, by a process that died) are left out.
    """
    fs, path = filesystem(url)
    if is_local(url):
        with translate_errors(url):
            return dict(sorted(walk(path)))
    found = request(url, fs.find, path, detail=True)
    if not found:
        list_folders(url)  # raises where the bucket itself is missing
    prefix = path.rstrip("/") + "/"
    files = without_markers(found).items()
    return dict(sorted((name[len(prefix) :], info["size"]) for name, info in files if name.startswith(prefix)))


def without_markers(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files among what a store has found by name. Left out are empty objects that stand for a folder: ``x/``,
    ``x_$folder$``, and ``x`` beside ``x/y``."""
    files = {name: info for name, info in sorted(found.items()) if info["type"] == "file" and not name.endswith("/")}
    parents = {name[:end] for name in files for end, letter in enumerate(name) if letter == "/"}
    return {
        name: info
        for name, info in files.items()
        if info["size"] or not (name in parents or name.endswith(FOLDER_MARKER))
    }


def list_files(url: str) -> list[str]:
    return list(list_sizes(url))


def list_folders(url: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; empty when it is absent."""
    fs, path = filesystem(url)
    with contextlib.suppress(NotFoundError):
        entries = request(url, fs.ls, path, detail=True)
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")
    return []


def remove_tree(url: str) -> None:
    """Remove a file, or a folder with all that is below it, if it exists."""
    fs, path = filesystem(url)
    with contextlib.suppress(NotFoundError):
        request(url, fs.rm, path, recursive=True)


def sha256(url: str) -> Digest:
    """The digest of a file, read in chunks."""
    digest = hashlib.sha256()
    if is_local(url):
        with translate_errors(url), open(local_path(url), "rb") as file:
            hashlib.file_digest(file, lambda: digest)
            return Digest(file.tell(), digest.hexdigest())
    total = size(url)
    for chunk in read_chunks(url, total):
        digest.update(chunk)
    return Digest(total, digest.hexdigest())


def read_chunks(url: str, total: int) -> Iterator[bytes]:
    """The ``total`` bytes of a remote file, each chunk by a request of its own."""
    fs, path = filesystem(url)
    for start in range(0, total, CHUNK_BYTES):
        yield request(url, fs.cat_file, path, start=start, end=min(start + CHUNK_BYTES, total))


def upload(local_file: str, url: str) -> Digest:
    """Copy a local file to a URL in one step; returns its digest. Raises SourceError unless all bytes arrived."""
    sent = sha256(local_file)
    fs, path = filesystem(url)
    if is_local(url):
        with partial_file(url, path) as partial:
            shutil.copyfile(local_file, partial)
            fsync(partial)
            os.replace(partial, path)
        fsync(os.path.dirname(path))
    else:
        request(url, fs.put_file, local_path(local_file), path)
    if size(url) != sent.bytes:
        raise SourceError(f"{redact(url)}: {size(url)} of {sent.bytes} bytes arrived; run again")
    return sent


def describe_mismatch(actual: tuple[int, str], expected: tuple[int, str]) -> str:
    """How a file differs from what is recorded of it, in words; both as ``Digest``."""
    (size, sha), (expected_size, expected_sha) = actual, expected
    if size != expected_size:
        return f"has {size:,} bytes instead of {expected_size:,}"
    return f"is damaged: sha256 {sha[:12]}… instead of {expected_sha[:12]}…"


def copy(source: str, target: str) -> None:
    """Copy one file within a file system (on object stores without moving the bytes through this machine)."""
    fs, path = filesystem(source)
    request(source, fs.cp_file, path, filesystem(target)[1])
