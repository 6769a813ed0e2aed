"""Tags of local files that depend on their content alone, cheap also for terabytes.

A file of up to ``WHOLE_BYTES`` is hashed whole. Of a longer one, the hash covers the size, ``BLOCKS`` blocks at even
distances (the first and the last among them) and, for parquet, the footer, which holds the place, size and statistics
of every column chunk. What this misses: a change in place that keeps the size, lies between the blocks and leaves the
footer as it is.

Tags are remembered by path, size and times in one file of the cache folder, so that a source is read only once.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

WHOLE_BYTES = 2**20
BLOCKS, BLOCK_BYTES = 16, 2**16
MEMORY_FILE = "content-tags.json"
MOST_REMEMBERED = 200_000  # files
# A file may change again within the resolution of its times, so one that is younger is not remembered.
SETTLED_NS = 2 * 10**9
_PARQUET_END = b"PAR1"


class _State(NamedTuple):
    """What the operating system says of a file; the times are those of its content and of its entry."""

    bytes: int
    modified_ns: int
    changed_ns: int


def content_tag(path: str) -> str:
    """The tag of one file, read now. Raises OSError."""
    with open(path, "rb") as file:
        return tag_of(file, os.fstat(file.fileno()).st_size)


def tag_of(file: BinaryIO, size: int) -> str:
    """The tag of an open file, at whatever place."""
    digest = hashlib.sha256(f"{size}\n".encode())
    if size <= WHOLE_BYTES:
        file.seek(0)
        digest.update(file.read())
    else:
        for start in np.linspace(0, size - BLOCK_BYTES, BLOCKS).astype(int).tolist():
            file.seek(start)
            digest.update(file.read(BLOCK_BYTES))
        digest.update(_parquet_footer(file, size))
    return f"content-{digest.hexdigest()}"


def content_tags(paths: Sequence[str], cache_folder: str) -> list[str]:
    """The tags of many files; one whose path, size and times are remembered in the folder is not read.

    Raises OSError.
    """
    memory = Path(cache_folder, MEMORY_FILE)
    remembered = _load(memory)
    states = {path: _state(path) for path in paths}
    missing = [path for path, state in states.items() if path not in remembered or remembered[path][0] != state]
    with ThreadPoolExecutor(16) as pool:
        read = dict(zip(missing, pool.map(content_tag, missing), strict=True))
    settled = time.time_ns() - SETTLED_NS
    fresh = {path: (states[path], tag) for path, tag in read.items() if max(states[path][1:]) < settled}
    if fresh:
        _save(memory, remembered | fresh)
    return [read[path] if path in read else remembered[path][1] for path in paths]


def _state(path: str) -> _State:
    status = os.stat(path)
    return _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _parquet_footer(file: BinaryIO, size: int) -> bytes:
    """The footer of a parquet file, empty for another file. Its length precedes the magic bytes at the end."""
    file.seek(size - 8)
    end = file.read(8)
    if end[4:] != _PARQUET_END:
        return b""
    length = min(int.from_bytes(end[:4], "little"), size - 8)
    file.seek(size - 8 - length)
    return file.read(length)


def _load(memory: Path) -> dict[str, tuple[_State, str]]:
    """What is remembered; nothing if there is no such file, or it cannot be read or is damaged."""
    try:
        return {path: (_State(*state), tag) for path, (state, tag) in json.loads(memory.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(memory: Path, tags: dict[str, tuple[_State, str]]) -> None:
    """Of several writers at once the last one wins: what the others found is read again some time. So it is where the
    folder cannot be written."""
    newest = dict(list(tags.items())[-MOST_REMEMBERED:])
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=memory.parent) as folder:
            partial = Path(folder, memory.name)
            partial.write_text(json.dumps(newest))
            partial.replace(memory)
