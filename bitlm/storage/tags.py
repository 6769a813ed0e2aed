"""Size and tag of files, to see whether their content is still the same without reading all of it.

The tag of a local file is made of its content (``bitlm.storage.content``), that of an object in a store is the store's
own: its ETag, where it has one. The tags of a folder or pattern in a store come with the listing, without a request for
each file.
"""

import os
import re
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from bitlm.errors import SourceError
from bitlm.storage.content import content_tag, content_tags
from bitlm.storage.files import glob, list_files, list_folders
from bitlm.storage.requests import redact, request, translate_errors
from bitlm.storage.urls import cache_root, filesystem, is_local, join, local_path

# What stores and HTTP servers say of the content of a file, the most telling first.
_CONTENT_KEYS = ("ETag", "etag", "Content-MD5", "Digest", "Last-Modified")
_WILDCARD = re.compile(r"[*?\[]")


class FileTag(NamedTuple):
    """``etag`` changes when the content does."""

    bytes: int
    etag: str


class Listing(NamedTuple):
    """``files``: URL → size and tag, sorted by URL. ``base`` is the folder that paths of the files are relative to: the
    folder itself, that of the single file, or the one before the pattern. ``ignored`` counts files of other kinds."""

    base: str
    files: dict[str, FileTag]
    ignored: int


def stat_tag(url: str) -> FileTag:
    """Size and tag of one file, asked for now. Raises SourceError."""
    fs, path = filesystem(url)
    info = request(url, fs.info, path)
    if info["type"] == "directory":
        raise SourceError(f"{redact(url)} is a folder, not a file")
    if is_local(url):
        with translate_errors(url):
            return FileTag(info["size"], content_tag(path))
    return _remote_tag(fs, path, info)


def find_tagged(source: str, suffixes: tuple[str, ...]) -> Listing:
    """One file, all files below a folder, or all that match a pattern; only those with one of the suffixes are tagged.

    Empty if there is no such file or folder. Raises SourceError.
    """
    return _find_local(local_path(source), suffixes) if is_local(source) else _find_remote(source, suffixes)


def _find_local(source: str, suffixes: tuple[str, ...]) -> Listing:
    matches = glob(source)
    base, paths = (_base(source), matches) if matches else (source, [join(source, path) for path in list_files(source)])
    usable = [path for path in paths if path.endswith(suffixes)]
    with translate_errors(source):
        tags = content_tags(usable, cache_root())
        files = {path: FileTag(os.path.getsize(path), tag) for path, tag in zip(usable, tags, strict=True)}
    return Listing(base, files, len(paths) - len(usable))


def _find_remote(source: str, suffixes: tuple[str, ...]) -> Listing:
    fs, path = filesystem(source)
    base, entries = _base(source), _files(request(source, fs.glob, path, detail=True))
    if not entries:
        base, entries = source, _files(request(source, fs.find, path, detail=True))
    if not entries:
        list_folders(base)  # raises if the bucket itself is missing
    usable = {name: info for name, info in sorted(entries.items()) if name.endswith(suffixes)}
    files = {fs.unstrip_protocol(name): _remote_tag(fs, name, info) for name, info in usable.items()}
    return Listing(base, files, len(entries) - len(usable))


def _base(source: str) -> str:
    return _WILDCARD.split(source)[0].rpartition("/")[0]


def _files(entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: info for name, info in entries.items() if info["type"] == "file"}


def _remote_tag(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> FileTag:
    etag = next((info[key] for key in _CONTENT_KEYS if info.get(key)), None)
    return FileTag(info["size"], str(etag).strip('"') if etag else fs.ukey(path))
