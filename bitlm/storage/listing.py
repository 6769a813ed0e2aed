"""The files of a source: one file, all files below a folder, or all that match a pattern.

The same rules hold on this machine and on every store; ``bitlm.storage.patterns`` says what a pattern matches. A folder
means all files below it whose names are not hidden. Links are followed, and a file that is reached twice counts once.
"""

import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from bitlm.errors import SourceError
from bitlm.storage.files import list_folders, without_markers
from bitlm.storage.patterns import Pattern, States, has_magic, split_base
from bitlm.storage.requests import NotFoundError, redact, request, translate_errors
from bitlm.storage.urls import file_name, filesystem, is_http, is_local, local_path

REPEATED, BROKEN, IRREGULAR = "links to what is read already", "broken links", "not regular files"
EVERYTHING = "**"
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".br", ".zip")


class Entry(NamedTuple):
    """``path`` is relative to the folder, to that of the single file, or to the one before the first wildcard.
    ``info``: what a store says of the file; None on this machine."""

    path: str
    url: str
    info: dict[str, Any] | None


class Listing(NamedTuple):
    """``entries``: the files with one of the suffixes, sorted by path. ``left_out``: what was met besides, counted by
    ending or by reason; names that begin with ``.`` are not."""

    entries: list[Entry]
    left_out: Counter[str]


def find(source: str, suffixes: tuple[str, ...]) -> Listing:
    """The files of a path, pattern or URL. ``suffixes`` are in lower case, and match in any case.

    Empty if there is no such file or folder. Raises SourceError.
    """
    if is_local(source):
        entries, left_out = _find_local(local_path(source), suffixes)
    elif is_http(source):
        entries, left_out = _find_http(source, suffixes)
    else:
        entries, left_out = _find_remote(source, suffixes)
    return Listing(sorted(entries, key=lambda entry: entry.path), +left_out)


def ending(name: str) -> str:
    """The last suffix of a name, with the one before it where that is compressed."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in _COMPRESSIONS else suffixes[-1:]) or "no ending"


def _find_local(source: str, suffixes: tuple[str, ...]) -> tuple[list[Entry], Counter[str]]:
    with translate_errors(source):
        if os.path.isdir(source):
            walk = _Walk(source, Pattern(EVERYTHING, suffixes), suffixes)
        elif os.path.lexists(source):
            walk = _Walk(os.path.dirname(source), None, suffixes)
            walk.take(os.path.basename(source))
        elif has_magic(source):
            base, pattern = split_base(source)
            walk = _Walk(base or "/", Pattern(pattern, suffixes), suffixes)
        else:
            return [], Counter()
        walk.run()
    return [Entry(path, os.path.join(walk.base, path), None) for path in walk.found.values()], walk.left_out


class _Walk:
    """Goes through the folders below ``base`` that a pattern may match. Links come last, in order of their paths, so
    that a file that is reached by a link and without one keeps the path without."""

    def __init__(self, base: str, pattern: Pattern | None, suffixes: tuple[str, ...]) -> None:
        self.base = base
        self.found: dict[str, str] = {}
        """Real path → path relative to the base."""
        self.left_out: Counter[str] = Counter()
        self._pattern, self._suffixes = pattern, suffixes
        self._seen: set[tuple[str, States]] = set()
        self._links: list[tuple[str, States]] = []

    def run(self) -> None:
        if self._pattern is None or not os.path.isdir(self.base):
            return
        self._descend("", self._pattern.start)
        while self._links:
            path, states = heapq.heappop(self._links)
            if os.path.isdir(os.path.join(self.base, path)):
                self._descend(path, states)
            else:
                self.take(path)

    def take(self, path: str, real: str | None = None) -> None:
        """Note a file, or why it is left out."""
        full = os.path.join(self.base, path)
        if not path.lower().endswith(self._suffixes):
            self.left_out[ending(os.path.basename(path))] += 1
            return
        try:
            mode = os.stat(full).st_mode
        except OSError:
            if not os.path.islink(full):
                raise
            self.left_out[BROKEN] += 1
            return
        real = real or os.path.realpath(full)
        if not stat.S_ISREG(mode):
            self.left_out[IRREGULAR] += 1
        elif real in self.found:
            self.left_out[REPEATED] += 1
        else:
            self.found[real] = _readable_name(full, path)

    def _descend(self, start: str, states: States) -> None:
        pending = [(start, os.path.realpath(os.path.join(self.base, start)), states)]
        while pending:
            folder, real, states = pending.pop()
            if (real, states) in self._seen:
                self.left_out[REPEATED] += 1
                continue
            self._seen.add((real, states))
            for entry in _scan(real):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._meet_link(path, states)
                elif entry.is_dir():
                    pending += [(path, entry.path, reached) for reached in self._enter(states, entry.name)]
                elif self._accept(states, entry.name):
                    self.take(path, entry.path)

    def _meet_link(self, path: str, states: States) -> None:
        name = os.path.basename(path)
        if os.path.isdir(os.path.join(self.base, path)):
            for reached in self._enter(states, name):
                heapq.heappush(self._links, (path, reached))
        elif self._accept(states, name):
            heapq.heappush(self._links, (path, frozenset()))

    def _enter(self, states: States, name: str) -> Iterator[States]:
        """The states below a folder, if anything there can match."""
        assert self._pattern is not None
        reached = self._pattern.advance(states, name, folder=True)
        if reached:
            yield reached
        elif self._pattern.advance(states, name, folder=True, hidden=True):
            self.left_out[f"{name}/"] += 1

    def _accept(self, states: States, name: str) -> bool:
        assert self._pattern is not None
        if self._pattern.matched(self._pattern.advance(states, name, folder=False)):
            return True
        hidden = self._pattern.advance(states, name, folder=False, hidden=True)
        if self._pattern.matched(hidden) and name.lower().endswith(self._suffixes):
            self.left_out[f"_*{ending(name)}"] += 1
        return False


def _scan(folder: str) -> list[os.DirEntry[str]]:
    with translate_errors(folder), os.scandir(folder) as entries:
        return list(entries)


def _readable_name(full: str, path: str) -> str:
    """Raises SourceError for a name that cannot be written down."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(full).decode(errors="backslashreplace")
        raise SourceError(f"{shown}: the name is not UTF-8; rename the file") from None
    return path


def _find_http(source: str, suffixes: tuple[str, ...]) -> tuple[list[Entry], Counter[str]]:
    """An HTTP server has no listing, so a URL is that of one file."""
    fs, url = filesystem(source)
    name = file_name(url)
    if has_magic(name) or not name:
        raise SourceError(f"{redact(source)}: an HTTP server has no listing; give the URL of one file")
    try:
        info = request(source, fs.info, url)
    except NotFoundError:
        return [], Counter()
    if not name.lower().endswith(suffixes):
        return [], Counter([ending(name)])
    return [Entry(name, source, info)], Counter()


def _find_remote(source: str, suffixes: tuple[str, ...]) -> tuple[list[Entry], Counter[str]]:
    fs, path = filesystem(source)
    if has_magic(path):
        base, pattern = split_base(path)
        chosen = _choose(source, base, Pattern(pattern, suffixes), suffixes)
        if any(chosen):
            return chosen
    single = None if source.endswith("/") else _object(source, fs, path)
    if single is None:
        return _choose(source, path, Pattern(EVERYTHING, suffixes), suffixes)
    if not path.lower().endswith(suffixes):
        return [], Counter([ending(path)])
    return [Entry(path.rpartition("/")[2], fs.unstrip_protocol(path), single)], Counter()


def _object(source: str, fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What the store says of the object at a path; None if there is none, or an empty one that stands for a folder."""
    try:
        info = request(source, fs.info, path)
    except NotFoundError:
        return None
    if info["type"] == "directory" or (not info["size"] and _find(source, fs, path).keys() - {path}):
        return None
    return info


def _choose(source: str, base: str, pattern: Pattern, suffixes: tuple[str, ...]) -> tuple[list[Entry], Counter[str]]:
    """The objects below ``base`` that match; those that stand for folders are none."""
    fs = filesystem(source)[0]
    found = _find(source, fs, base, pattern.depth)
    if not found:
        list_folders(fs.unstrip_protocol(base))  # raises if the bucket itself is missing
    prefix = base.rstrip("/") + "/"
    for folder in [name for name, info in found.items() if info["type"] == "directory"]:
        if folder.lower().endswith(suffixes) and pattern.match(folder.removeprefix(prefix))[0]:
            found |= _find(source, fs, folder)
    entries, left_out = [], Counter[str]()
    for name, info in without_markers(found).items():
        path = name.removeprefix(prefix)
        matched, hidden = pattern.match(path)
        usable = name.lower().endswith(suffixes)
        if matched and usable:
            entries.append(Entry(path, fs.unstrip_protocol(name), info))
        elif matched or (hidden and hidden.endswith("/")):
            left_out[hidden or ending(name)] += 1
        elif hidden and usable:
            left_out[f"_*{ending(name)}"] += 1
    return entries, left_out


def _find(source: str, fs: AbstractFileSystem, path: str, depth: int | None = None) -> dict[str, dict[str, Any]]:
    """Name → what the store says of it: all files below a folder, or with ``depth`` files and folders down to there."""
    options = {} if depth is None else {"maxdepth": depth, "withdirs": True}
    try:
        return request(source, fs.find, path, detail=True, **options)
    except NotFoundError:
        return {}
