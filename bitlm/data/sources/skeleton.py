"""The skeleton of a text: its letters and digits alone, in lower case and without accents. Texts that differ only in
white space, case, punctuation, symbols, invisible characters or the Unicode form of their characters share it.

Each character has its own skeleton, whatever stands beside it, so a text inside another has its skeleton inside the
other's. A projection of a skeleton leaves out some of the letters too; that keeps the same property.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np

Utf8 = bytes | memoryview

SEPARATOR = b"\xff"  # no byte of UTF-8; it stays in skeletons and projections
# From rare to frequent in English: the fewer letters a projection keeps, the less there is to search.
_LETTERS = b"zqxj0123456789kvbpygfwmucldhrsnioate"
LEVELS = len(_LETTERS)
_KEPT = ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No")  # of Unicode's categories; Lm holds letters like the apostrophe ʼ
_CHUNK = 2**18  # bytes, 4 at least: what is made of them stays in the processor's cache


def _levels() -> np.ndarray:
    """The first level at which a byte of a skeleton is kept, uint8 [256]; the others of its 256 have LEVELS."""
    levels = np.full(256, LEVELS, np.uint8)
    levels[0xC2:0xF5] = LEVELS - 1
    for byte in range(0x80, 0xC0):  # the last bytes of other scripts' letters: one more at each level
        levels[byte] = min(byte * 29 % 64, LEVELS - 1)
    levels[list(_LETTERS)] = range(LEVELS)
    return levels


BYTE_LEVELS = _levels()


def kept_bytes(level: int) -> np.ndarray:
    """Which bytes of a skeleton a projection keeps: bool [256]."""
    return np.less_equal(BYTE_LEVELS, level)


def projection_table(level: int) -> bytes:
    """For ``project``: what a byte becomes, 0 where it is left out. Level LEVELS - 1 keeps the whole skeleton."""
    table = np.where(kept_bytes(level), np.arange(256), 0).astype(np.uint8)
    table[SEPARATOR[0]] = SEPARATOR[0]
    table[ord("A") : ord("Z") + 1] = table[ord("a") : ord("z") + 1]
    return table.tobytes()


_WHOLE = projection_table(LEVELS - 1)


def skeletons(texts: Sequence[Utf8]) -> list[bytes]:
    """The skeletons of texts in UTF-8. A text without letters and digits is its own, without white space and after a
    zero."""
    found = project(SEPARATOR.join(texts), _WHOLE).tobytes().split(SEPARATOR) if texts else []
    return [bare or b"\0" + b"".join(bytes(text).split()) for bare, text in zip(found, texts, strict=True)]


def project(text: bytes, table: bytes) -> np.ndarray:
    """The bytes that a projection keeps of the skeleton of a text in UTF-8: uint8 [kept]. Texts may be joined by
    SEPARATOR."""
    parts, start = [], 0
    while start < len(text):
        stop = min(start + _CHUNK, len(text))
        while stop < len(text) and text[stop] & 0xC0 == 0x80:  # not inside a character
            stop -= 1
        chunk = text[start:stop]
        bare = np.frombuffer((chunk if chunk.isascii() else _fold(chunk)).translate(table), np.uint8)
        parts.append(bare.take(np.flatnonzero(bare != 0)))
        start = stop
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


class _Folds:
    """The skeletons of the characters met so far: that of ``character`` is the ``lengths[index[character]]`` bytes of
    ``bytes`` from ``starts[index[character]]`` on."""

    def __init__(self) -> None:
        self.index = np.full(0x110000, -1, np.int32)
        self.starts = np.zeros(0, np.int64)
        self.lengths = np.zeros(0, np.int64)
        self.bytes = np.zeros(0, np.uint8)

    def __call__(self, characters: np.ndarray) -> np.ndarray:
        """Their places in ``starts`` and ``lengths``."""
        found = self.index[characters]
        if (found < 0).any():
            self._add(np.unique(characters[found < 0]))
            found = self.index[characters]
        return found

    def _add(self, characters: np.ndarray) -> None:
        folded = [_folded(chr(character)) for character in characters.tolist()]
        lengths = np.array(list(map(len, folded)), np.int64)
        self.index[characters] = len(self.lengths) + np.arange(len(characters))
        self.starts = np.concatenate([self.starts, len(self.bytes) + np.cumsum(lengths) - lengths])
        self.lengths = np.concatenate([self.lengths, lengths])
        self.bytes = np.concatenate([self.bytes, np.frombuffer(b"".join(folded), np.uint8)])


_folds = _Folds()


def _folded(character: str) -> bytes:
    lower = unicodedata.normalize("NFKD", character).upper().casefold()  # by way of upper case for the dotless i
    decomposed = unicodedata.normalize("NFKD", lower)
    return "".join(part for part in decomposed if unicodedata.category(part) in _KEPT).encode()


def _fold(chunk: bytes) -> bytes:
    """The same text with each character beyond ASCII replaced by its skeleton; zeros fill what is left of its bytes."""
    text = np.frombuffer(bytearray(chunk + bytes(3)), np.uint8)
    places = np.flatnonzero((text - np.uint8(0xC2)) < 0x33)  # first bytes of characters: 0xC2 … 0xF4
    characters, sizes = _decoded(text, places)
    text[places] = text[places + 1] = 0
    text[places[sizes > 2] + 2] = 0
    text[places[sizes > 3] + 3] = 0
    folds = _folds(characters)
    lengths = _folds.lengths.take(folds)
    some = np.flatnonzero(lengths)
    if not len(some):
        return text.tobytes()
    places, sizes, lengths, folds = places[some], sizes[some], lengths[some], folds[some]
    more = np.maximum(lengths - sizes, 0)
    if more.any():
        text = np.insert(text, np.repeat(places + sizes, more), 0)
        places = places + np.cumsum(more) - more
    steps = ramp(lengths)
    text[np.repeat(places, lengths) + steps] = _folds.bytes[np.repeat(_folds.starts[folds], lengths) + steps]
    return text.tobytes()


def _decoded(text: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code points and UTF-8 sizes of the characters that begin at some places; three bytes follow the last."""
    first, second, third = (text.take(places + offset).astype(np.int32) for offset in range(3))
    sizes = 2 + (first >= 0xE0) + (first >= 0xF0)
    low = (second & 0x3F) << 6 | third & 0x3F
    characters = np.where(sizes == 2, (first & 0x1F) << 6 | second & 0x3F, (first & 0x0F) << 12 | low)
    long = np.flatnonzero(sizes == 4)
    fourth = text[places[long] + 3].astype(np.int32)
    characters[long] = (first[long] & 0x07) << 18 | low[long] << 6 | fourth & 0x3F
    return characters, sizes


def ramp(lengths: np.ndarray) -> np.ndarray:
    """0 … length - 1 for each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
