"""Checked rows of text: each holds either a usable text or says why it does not.

Text stays in Arrow's buffers; a Python object is made only for a row that is not usable.
"""

import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bitlm import storage
from bitlm.errors import SourceError

BATCH_BYTES = 4 * 2**20  # of text in a batch, or one row that is longer
STREAM_BYTES = 4 * 2**20  # asked for at a time when a file is streamed
# Why a row is unusable: no such key or column, or null; empty or blank; not UTF-8; of another type; not a JSON object.
NO_TEXT, EMPTY_TEXT, INVALID_UNICODE = "no_text", "empty_text", "invalid_unicode"
NOT_TEXT, INVALID_JSON = "not_text", "invalid_json"
_BLANK = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})  # Unicode categories: spaces, controls, zero-width and other formats


class Fault(NamedTuple):
    """Why a row is unusable, and what can be shown of it."""

    reason: str
    shown: str | None


@dataclass(frozen=True)
class TextBatch:
    """n rows of a file, in order.

    ``rows`` int64 [n], their 0-based numbers in the file; ``ids`` strings, null where a row has none; ``texts`` large
    strings, null where a row is unusable; ``faults`` by place in the batch.
    """

    rows: np.ndarray
    ids: pa.StringArray
    texts: pa.LargeStringArray
    faults: dict[int, Fault]

    def bounds(self) -> np.ndarray:
        """Where each text begins in the buffer, and the end of the last: int64 [n + 1]."""
        return text_bounds(self.texts)

    def strings(self) -> np.ndarray:
        """str objects [n], None where a row is unusable."""
        return self.texts.to_numpy(zero_copy_only=False)

    def contents(self, places: np.ndarray) -> list[memoryview]:
        """The UTF-8 of the texts at some places, where they lie in the buffer."""
        data, bounds = self.texts.buffers()[2], self.bounds()
        if data is None:  # of empty texts alone
            return [memoryview(b"")] * len(places)
        view = memoryview(data)
        spans = zip(bounds[places].tolist(), bounds[places + 1].tolist(), strict=True)
        return [view[start:stop] for start, stop in spans]


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in a text: only white space, control and zero-width characters, if any."""
    return all(unicodedata.category(character) in _BLANK for character in text)


def text_bounds(texts: pa.Array) -> np.ndarray:
    """Byte offsets int64 [n + 1] of large strings or large binary values."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return offsets[texts.offset : texts.offset + len(texts) + 1]


def damaged(url: str, row: int | None, error: Exception) -> SourceError:
    where = "" if row is None else f" at row {row}"
    reason = str(error).strip().split("\n", 1)[0]
    return SourceError(f"{storage.redact(url)} is damaged{where} ({reason}): fetch it again, or leave it out")
