"""Packed codes: 8 token ids of B bits each, most significant bit first, are B bytes.

NumPy only, so that reading and writing shards needs no torch. Packing works on groups of 8 tokens, which take exactly B
bytes for every B, and moves machine words instead of single bits.
"""

from functools import lru_cache

import numpy as np

from bitlm.errors import ConfigError

Buffer = bytes | bytearray | memoryview | np.ndarray

MAX_BITS = 32
_GROUP = 8  # tokens in one packed value
_CHUNK = 8192  # groups processed at a time: the temporaries stay in the core's cache
_BYTE_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1  # [256, 8]


def pack(ids: np.ndarray, num_bits: int) -> np.ndarray:
    """ids [n] (n a multiple of 8) → bytes, uint8 [n·B/8], most significant bit first.

    Raises ConfigError if n is not a multiple of 8 or an id does not fit.
    """
    check_bits(num_bits)
    if ids.ndim != 1 or len(ids) % _GROUP:
        raise ConfigError(f"pack takes one row of ids whose length is a multiple of {_GROUP}, got shape {ids.shape}")
    if len(ids):
        check_range(0 if ids.dtype.kind == "u" else int(ids.min()), int(ids.max()), num_bits)
    groups = np.ascontiguousarray(ids, dtype=np.uint32).reshape(-1, _GROUP)
    packed = np.empty(len(groups), dtype=_layout(num_bits))
    overlaps = _overlaps(num_bits)
    tokens, bits, shifted = (np.empty(shape, dtype=np.uint64) for shape in ((_GROUP, _CHUNK), _CHUNK, _CHUNK))
    for start in range(0, len(groups), _CHUNK):
        count = min(_CHUNK, len(groups) - start)
        part, used = slice(start, start + count), slice(count)
        tokens[:, used] = groups[part].T
        for word, pieces in overlaps.items():
            bits[used] = 0
            for token, shift in pieces:
                move = np.left_shift if shift >= 0 else np.right_shift
                move(tokens[token, used], np.uint64(abs(shift)), out=shifted[used])
                bits[used] |= shifted[used]
            packed[word][part] = bits[used]  # keeps the low bits, in the byte order of the field
    return packed.view(np.uint8)


def unpack(packed: Buffer, num_bits: int, out: np.ndarray | None = None) -> np.ndarray:
    """The inverse of ``pack``: bytes (whole groups of B bytes) → ids, uint32 [n].

    With ``out`` [n], contiguous and of any integer type that can hold the ids, they are written there.
    Each token is cut out of a machine word that starts at its first byte, or slightly before it at the end of a group.
    Raises ConfigError if the bytes are not whole groups.
    """
    packed_words, plain_words, shifts = _cuts(num_bits)
    groups = _groups(packed, num_bits).view(packed_words)
    ids = np.empty(len(groups) * _GROUP, dtype=np.uint32) if out is None else out
    assert ids.shape == (len(groups) * _GROUP,), (ids.shape, len(groups))
    assert ids.flags.c_contiguous
    rows = ids.reshape(-1, _GROUP)
    in_place = ids.dtype == shifts.dtype
    words = rows if in_place else np.empty((min(len(rows), _CHUNK), _GROUP), dtype=shifts.dtype)
    for start in range(0, len(rows), _CHUNK):
        part = words[start : start + _CHUNK] if in_place else words[: len(rows) - start]
        np.copyto(part.view(plain_words)[:, 0], groups[start : start + _CHUNK])
        part >>= shifts[: len(part)]
        part &= shifts.dtype.type((1 << num_bits) - 1)
        if not in_place:
            rows[start : start + _CHUNK] = part
    return ids


def unpack_codes(packed: Buffer, num_bits: int) -> np.ndarray:
    """Packed bytes → codes [n, B] of ±1, float32, directly."""
    return _BYTE_SIGNS.take(_groups(packed, num_bits), axis=0).reshape(-1, num_bits)


def _groups(packed: Buffer, num_bits: int) -> np.ndarray:
    check_bits(num_bits)
    octets = np.frombuffer(packed, np.uint8)
    if len(octets) % num_bits:
        raise ConfigError(
            f"{len(octets)} packed bytes are not whole groups of {num_bits} bytes ({_GROUP} tokens at {num_bits} bits)"
        )
    return octets


@lru_cache
def _cuts(num_bits: int) -> tuple[np.dtype, np.dtype, np.ndarray]:
    """How to cut the tokens out of a group: (packed, plain, shifts).

    ``packed`` views a group as 8 overlapping big-endian words, each of which contains the B bits of one token, and
    ``plain`` as 8 native words side by side; ``shifts`` [_CHUNK, 8] move each token's bits to the low end of its word.
    """
    size = next(size for size in (1, 2, 4, 8) if size == num_bits or 8 * size >= num_bits + 7)
    offsets = [min(token * num_bits // 8, num_bits - size) for token in range(_GROUP)]
    shifts = [8 * (offset + size) - (token + 1) * num_bits for token, offset in enumerate(offsets)]
    names = [f"token{token}" for token in range(_GROUP)]
    packed = {"names": names, "formats": [f">u{size}"] * _GROUP, "offsets": offsets, "itemsize": num_bits}
    plain = {"names": names, "formats": [f"u{size}"] * _GROUP}
    return np.dtype(packed), np.dtype(plain), np.tile(np.array(shifts, dtype=f"u{size}"), (_CHUNK, 1))


def _fields(num_bits: int) -> list[tuple[str, int, int]]:
    """A group's B bytes cut into words (name, byte offset, bytes): as many of 8 bytes as fit, then of 4, 2 and 1."""
    fields, offset = [], 0
    while offset < num_bits:
        size = next(size for size in (8, 4, 2, 1) if offset + size <= num_bits)
        fields.append((f"word{offset}", offset, size))
        offset += size
    return fields


def _layout(num_bits: int) -> np.dtype:
    return np.dtype([(name, f">u{size}") for name, _, size in _fields(num_bits)])


def _overlaps(num_bits: int) -> dict[str, list[tuple[int, int]]]:
    """For each word: the tokens that have bits in it, with the left shift (negative: right) that puts them there."""
    overlaps = {}
    for name, offset, size in _fields(num_bits):
        first, end = 8 * offset, 8 * (offset + size)  # bits of the word, counted from the most significant of the group
        tokens = range(first // num_bits, (end - 1) // num_bits + 1)
        overlaps[name] = [(token, end - (token + 1) * num_bits) for token in tokens]
    return overlaps


def check_bits(num_bits: int) -> None:
    if not 1 <= num_bits <= MAX_BITS:
        raise ConfigError(f"num_bits = {num_bits}: choose 1 to {MAX_BITS}")


def check_range(low: int, high: int, num_bits: int) -> None:
    if low < 0 or high >= 1 << num_bits:
        wrong = low if low < 0 else high
        raise ConfigError(f"token id {wrong} does not fit in num_bits = {num_bits} (0 to {(1 << num_bits) - 1})")
