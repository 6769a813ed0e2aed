"""Size and tag of files, to see whether their content is still the same without reading all of it.

The tag of a local file is made of its content (``bitlm.storage.content``), that of an object in a store is the store's
own: its ETag, where it has one. The tags of a folder or pattern in a store come with the listing, without a request for
each file. An HTTP server that tells nothing of the content has it read, as that of a local file.
"""

import os
import time
from collections import Counter
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from bitlm.errors import SourceError
from bitlm.storage.content import content_tag, content_tags, tag_of
from bitlm.storage.files import open_read
from bitlm.storage.listing import find
from bitlm.storage.requests import redact, request, translate_errors
from bitlm.storage.urls import cache_root, filesystem, is_http, is_local

# What stores and HTTP servers say of the content of a file, the most telling first.
_CONTENT_KEYS = ("ETag", "etag", "Content-MD5", "Digest", "Last-Modified")
_SETTLING_SECONDS = 3  # at most, for a file that an HTTP server has just got


class FileTag(NamedTuple):
    """``etag`` changes when the content does."""

    bytes: int
    etag: str


class TaggedFile(NamedTuple):
    """``path`` is relative to the folder, to that of the single file, or to the one before the first wildcard."""

    path: str
    url: str
    tag: FileTag


class TaggedFiles(NamedTuple):
    """``files`` are sorted by path. ``left_out``: what else was met, counted by ending or by reason."""

    files: list[TaggedFile]
    left_out: Counter[str]


def stat_tag(url: str) -> FileTag:
    """Size and tag of one file, asked for now. Raises SourceError."""
    fs, path = filesystem(url)
    info = request(url, fs.info, path)
    if info["type"] != "file":
        kind = "a folder, not a file" if info["type"] == "directory" else "not a regular file"
        raise SourceError(f"{redact(url)} is {kind}")
    if is_local(url):
        with translate_errors(url):
            return FileTag(info["size"], content_tag(path))
    return _http_tag(url, info) if is_http(url) else _remote_tag(fs, path, info)


def find_tagged(source: str, suffixes: tuple[str, ...]) -> TaggedFiles:
    """One file, all files below a folder, or all that match a pattern; only those with one of the suffixes are tagged.

    Empty if there is no such file or folder. Raises SourceError.
    """
    entries, left_out = find(source, suffixes)
    if is_local(source):
        paths = [entry.url for entry in entries]
        with translate_errors(source):
            etags = content_tags(paths, cache_root())
            tags = [FileTag(os.path.getsize(path), etag) for path, etag in zip(paths, etags, strict=True)]
    else:
        fs = filesystem(source)[0]
        tags = [
            _http_tag(entry.url, entry.info) if is_http(source) else _remote_tag(fs, entry.url, entry.info)
            for entry in entries
        ]
    files = [TaggedFile(entry.path, entry.url, tag) for entry, tag in zip(entries, tags, strict=True)]
    return TaggedFiles(files, left_out)


def _remote_tag(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> FileTag:
    etag = next((info[key] for key in _CONTENT_KEYS if info.get(key)), None)
    return FileTag(info["size"], str(etag).strip('"') if etag else fs.ukey(path))


def _http_tag(url: str, info: dict[str, Any]) -> FileTag:
    """By what the server says of the content; without that, or without a size, of the content itself."""
    fs, path = filesystem(url)
    for _ in range(_SETTLING_SECONDS):
        if info["settled"] or "ETag" in info:
            break
        time.sleep(1)  # of two contents in one second the first would have the tag of the second
        info = request(url, fs.info, path)
    etag = next((info[key] for key in _CONTENT_KEYS if info.get(key)), None)
    if etag is not None and info["size"] is not None:
        return FileTag(info["size"], etag.strip('"'))
    with open_read(url) as file:
        size = file.seek(0, os.SEEK_END)
        return FileTag(size, etag.strip('"') if etag else tag_of(file, size))
