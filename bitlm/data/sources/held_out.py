"""Test documents must not be trained on: ``HeldOut`` finds the texts that are one of them or hold one as a whole.

Compared are skeletons. A document is looked for by its anchor, ``WINDOW`` bytes of a projection of its skeleton; where
a text has an anchor, the document is compared as a whole. So the test set is kept as numbers, without its text, and
what a text costs does not depend on their number.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.data.sources.corpus import EXCLUDED_FILE, parquet_bytes
from bitlm.data.sources.skeleton import (
    BYTE_LEVELS,
    LEVELS,
    SEPARATOR,
    Utf8,
    kept_bytes,
    project,
    projection_table,
    ramp,
    skeletons,
)
from bitlm.errors import ArtifactError

INSIDE_CHARACTERS = 50  # of a document's skeleton; a shorter document is looked for as a whole text only
WINDOW = 8  # bytes of a projection
# A row for each document, with the sha256 of its skeleton. If it is looked for inside others: the bytes of its skeleton
# and their polynomial; the anchor, and where it begins in the skeleton; another window, the check, and how far behind
# the anchor it is in the projection. Else: the bytes of its projection. The metadata tell the level of the projection.
SCHEMA = pa.schema(
    [
        ("sha256", pa.binary(32)),
        ("bytes", pa.int64()),
        ("polynomial", pa.uint64()),
        ("anchor", pa.uint64()),
        ("anchor_at", pa.int64()),
        ("check", pa.uint64()),
        ("check_at", pa.int64()),
        ("projected", pa.int64()),
    ]
)
_LEVEL = b"level"
_AT_ONCE = 1000
_BASE = 0x9E3779B97F4A7C15  # of the polynomials, and the multiplier of the hash of windows; odd
_POWERS = np.cumprod(np.array([1] + [_BASE] * (2**16 - 1), np.uint64))
_COUNTER_BITS = 22  # of the hash by which equal windows are counted
_T = TypeVar("_T")


def write_held_out(table: pa.Table, out: str) -> None:
    storage.write_atomic(storage.join(out, EXCLUDED_FILE), parquet_bytes(table))


def load_held_out(store: Store, record: Record) -> "HeldOut":
    """The test documents of a corpus artifact, verified, and kept for the next call. Raises ArtifactError."""
    return _load(store.root, record.id)


@lru_cache(maxsize=1)
def _load(root: str, corpus: str) -> "HeldOut":
    store = Store(root)
    with store.local_file(store.load(corpus), EXCLUDED_FILE) as path:
        table = pq.read_table(path)
    if table.schema != SCHEMA:
        raise ArtifactError(f"{corpus} was made by another version of bitlm: run `bitlm run corpus` to make it anew")
    return HeldOut(table)


class HeldOut:
    """Finds texts that are or hold a test document; made from a table of ``held_out_table``."""

    def __init__(self, table: pa.Table) -> None:
        level = int(table.schema.metadata[_LEVEL])
        self._projection = projection_table(level)
        self._kept = kept_bytes(level)
        whole = table.filter(pc.is_null(table["anchor"]))
        self._whole = frozenset(whole["sha256"].to_pylist())
        self._longest_whole = max(whole["projected"].to_pylist(), default=-1)
        inside = table.filter(pc.is_valid(table["anchor"])).sort_by("anchor")
        self._sha256 = inside["sha256"]
        names = ("bytes", "polynomial", "anchor", "anchor_at", "check", "check_at")
        self._documents = {name: inside[name].to_numpy() for name in names}
        self._bits = min(max(inside.num_rows.bit_length() + 5, 12), 26)
        self._anchored = np.zeros(2**self._bits, bool)  # by the hash of a window; up to 64 MiB
        self._anchored[_slots(self._documents["anchor"], self._bits)] = True

    def find(self, texts: Sequence[Utf8]) -> np.ndarray:
        """Which of some texts, in UTF-8, are a test document or hold one: bool [n]."""
        found = np.zeros(len(texts), bool)
        if not texts:
            return found
        projected = project(SEPARATOR.join(texts), self._projection)
        ends = np.append(np.flatnonzero(projected == SEPARATOR[0]), len(projected))
        starts = np.concatenate([[0], ends[:-1] + 1])
        short = np.flatnonzero(ends - starts <= self._longest_whole).tolist()
        for text, bare in zip(short, skeletons([texts[text] for text in short]), strict=True):
            found[text] = hashlib.sha256(bare).digest() in self._whole
        for text, places, documents in self._candidates(projected, starts, ends):
            found[text] |= self._holds(skeletons([texts[text]])[0], places, documents)
        return found

    def _candidates(
        self, projected: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(text, places of anchors in its projection, documents that have them) of the texts that may hold a document.
        Text i is ``projected[starts[i] : ends[i]]``."""
        places, windows = self._anchors(projected.tobytes())
        first, last = (np.searchsorted(self._documents["anchor"], windows, side) for side in ("left", "right"))
        documents = np.repeat(first, last - first) + ramp(last - first)
        places = np.repeat(places, last - first)
        texts = np.searchsorted(ends, places, "right")
        checks = places + self._documents["check_at"][documents]
        some = np.flatnonzero((checks >= starts[texts]) & (checks + WINDOW <= ends[texts]))
        found = projected[checks[some, None] + np.arange(WINDOW)].view("<u8").reshape(-1)
        some = some[found == self._documents["check"][documents[some]]]
        some = some[np.argsort(texts[some], kind="stable")]
        for group in np.split(some, np.flatnonzero(np.diff(texts[some])) + 1):
            if len(group):
                text = int(texts[group[0]])
                yield text, places[group] - starts[text], documents[group]

    def _anchors(self, projected: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Places and values of the windows that have the hash of an anchor."""
        places, found = [], []
        for start in range(WINDOW):
            windows = np.frombuffer(projected[start : len(projected) - (len(projected) - start) % WINDOW], "<u8")
            some = np.flatnonzero(self._anchored.take(_slots(windows, self._bits)))
            places.append(some * WINDOW + start)
            found.append(windows[some])
        return np.concatenate(places), np.concatenate(found)

    def _holds(self, bare: bytes, places: np.ndarray, documents: np.ndarray) -> bool:
        """Whether a skeleton holds one of the documents, given the places of their anchors in its projection."""
        letters = np.frombuffer(bare, np.uint8)
        starts = np.flatnonzero(self._kept[letters])[places] - self._documents["anchor_at"][documents]
        stops = starts + self._documents["bytes"][documents]
        some = np.flatnonzero((starts >= 0) & (stops <= len(letters)))
        starts, stops, documents = starts[some], stops[some], documents[some]
        values, powers = _polynomials(letters, starts, stops)
        for place in np.flatnonzero(values == self._documents["polynomial"][documents] * powers).tolist():
            sha256 = hashlib.sha256(bare[starts[place] : stops[place]]).digest()
            if sha256 == self._sha256[documents[place]].as_py():
                return True
        return False


def held_out_table(documents: Iterable[str]) -> pa.Table:
    """What ``HeldOut`` needs to know of test documents; their order and repetitions are of no effect."""
    unique: set[bytes] = set()
    for some in batched(documents):
        unique.update(skeletons([document.encode() for document in some]))
    ordered = [np.frombuffer(bare, np.uint8) for bare in sorted(unique)]
    inside = [bare for bare in ordered if bare[0] and len(bare.tobytes().decode()) >= INSIDE_CHARACTERS]
    level = max(map(_first_level, inside), default=0)
    kept = kept_bytes(level)
    counts = np.zeros(2**_COUNTER_BITS, np.int64)
    for bare in inside:
        np.add.at(counts, _slots(_windows(bare[kept[bare]]), _COUNTER_BITS), 1)
    rows = [_described(bare, kept, counts) for bare in inside]
    taken = {id(bare) for bare in inside}
    rows += [
        {"sha256": hashlib.sha256(bare).digest(), "projected": int(kept[bare].sum())}
        for bare in ordered
        if id(bare) not in taken
    ]
    return pa.Table.from_pylist(rows, SCHEMA.with_metadata({_LEVEL: str(level)}))


def batched(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Lists of so many items that ``find`` takes them at once."""
    iterator = iter(items)
    while batch := list(islice(iterator, _AT_ONCE)):
        yield batch


def _first_level(bare: np.ndarray) -> int:
    """The first level of projections that keeps a window of a skeleton."""
    return int(np.searchsorted(np.cumsum(np.bincount(BYTE_LEVELS[bare], minlength=LEVELS)), WINDOW))


def _described(bare: np.ndarray, kept: np.ndarray, counts: np.ndarray) -> dict[str, bytes | int]:
    """The row of a document that is looked for inside others. Its anchor is the window that is the rarest among all."""
    projected = np.flatnonzero(kept[bare])
    windows = _windows(bare[projected])
    slots = _slots(windows, _COUNTER_BITS)
    anchor = int(np.lexsort((slots, counts[slots]))[0])
    check = len(windows) - 1 if anchor < len(windows) / 2 else 0
    values, _ = _polynomials(bare, np.zeros(1, np.int64), np.array([len(bare)]))
    return {
        "sha256": hashlib.sha256(bare).digest(),
        "bytes": len(bare),
        "polynomial": int(values[0]),
        "anchor": int(windows[anchor]),
        "anchor_at": int(projected[anchor]),
        "check": int(windows[check]),
        "check_at": check - anchor,
    }


def _windows(projected: np.ndarray) -> np.ndarray:
    """All windows of a projection: uint64 [n - WINDOW + 1]."""
    views = np.lib.stride_tricks.sliding_window_view(projected, WINDOW)
    return np.ascontiguousarray(views).view("<u8").reshape(-1)


def _slots(windows: np.ndarray, bits: int) -> np.ndarray:
    return ((windows * np.uint64(_BASE)) >> np.uint64(64 - bits)).view(np.int64)


def _polynomials(letters: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ letters[i]·BASE^i over start ≤ i < stop, and BASE^start, modulo 2^64, of some parts of a text."""
    points, where = np.unique(np.concatenate([starts, stops]), return_inverse=True)
    sums, powers = np.zeros(len(points), np.uint64), np.zeros(len(points), np.uint64)
    total, scale = np.zeros(1, np.uint64), np.ones(1, np.uint64)
    for start in range(0, len(letters) + 1, len(_POWERS)):
        part = letters[start : start + len(_POWERS)]
        before = np.concatenate([total, total + scale * np.cumsum(part * _POWERS[: len(part)])])
        some = slice(*np.searchsorted(points, [start, start + len(_POWERS)]))
        sums[some], powers[some] = before[points[some] - start], scale * _POWERS[points[some] - start]
        total, scale = before[-1:], scale * _POWERS[-1:] * np.uint64(_BASE)
    first, last = where[: len(starts)], where[len(starts) :]
    return sums[last] - sums[first], powers[first]
