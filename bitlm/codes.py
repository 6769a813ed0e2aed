"""Binary codes φ of token ids: ±1 coordinates for the model, packed bits for storage.

The code of id ``y`` is its ``B`` bits, most significant first, 0 → -1 and 1 → +1. Nothing is learned. Packing works on
groups of 8 tokens, which take exactly ``B`` bytes for every ``B``; it goes through 64-bit words instead of single bits.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bitlm.errors import ConfigError

Buffer = bytes | bytearray | memoryview | np.ndarray

MAX_BITS = 32
_GROUP = 8  # tokens in one packed value
_CHUNK = 8192  # groups in work at once: the temporaries stay in the core's cache
_BYTE_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1  # [256, 8]


def min_bits(vocab_size: int) -> int:
    """⌈log2 V⌉, the least B that gives every id its own code (at least 1)."""
    if vocab_size < 1:
        raise ConfigError(f"vocab_size = {vocab_size}: a vocabulary has at least one id")
    return max(1, (vocab_size - 1).bit_length())


def encode(ids: Tensor, num_bits: int) -> Tensor:
    """φ: ids [...] (any integer type) → codes [..., B] of ±1, float32.

    Raises ConfigError if an id does not fit in ``num_bits`` bits.
    """
    _check_bits(num_bits)
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        _check_range(low, high, num_bits)
    return signs(ids, num_bits)


def signs(ids: Tensor, num_bits: int) -> Tensor:
    """``encode`` without the range check, which would make a GPU wait: for ids that are known to fit."""
    return ((ids.long()[..., None] >> _shifts(num_bits, ids.device)) & 1).float() * 2 - 1


def decode(codes: Tensor, vocab_size: int, void: Literal["clamp", "nearest"] = "clamp") -> Tensor:
    """φ⁻¹: the sign of each coordinate of codes [..., B] (any real values) → ids [...], int64, all below V.

    A void corner (an integer ≥ V) becomes ``V - 1`` with ``clamp``; with ``nearest`` it becomes the real id that costs
    least to reach, where flipping a bit costs the magnitude of its coordinate.

    Raises ConfigError if B bits cannot tell ``vocab_size`` ids apart.
    """
    num_bits = codes.shape[-1]
    _check_bits(num_bits)
    if num_bits < min_bits(vocab_size):
        needed = min_bits(vocab_size)
        raise ConfigError(f"num_bits = {num_bits} is too small for {vocab_size} ids: at least {needed} are needed")
    ids = ((codes > 0).long() << _shifts(num_bits, codes.device)).sum(-1)
    if void == "clamp":
        return ids.clamp(max=vocab_size - 1)
    if void != "nearest":
        raise ConfigError(f"void = {void!r} is unknown; choose clamp or nearest")
    invalid = ids >= vocab_size
    if invalid.any():
        ids[invalid] = _nearest(codes[invalid], ids[invalid], vocab_size)
    return ids


def _nearest(codes: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """The id below V with the least flip cost, for codes [n, B] with integers ids [n].

    ``y < V`` holds iff at some place p, V has a 1 and y a 0 and both agree above p; below p, y is free and keeps its
    own bits. So the best id is among one candidate for each 1 of V.
    """
    shifts = _shifts(codes.shape[-1], codes.device)  # [B]
    costs = codes.abs().double()
    best_cost = torch.full(ids.shape, torch.inf, dtype=torch.float64, device=ids.device)
    best = torch.zeros_like(ids)
    for shift in (s for s in range(codes.shape[-1]) if vocab_size >> s & 1):
        candidate = (vocab_size >> shift + 1 << shift + 1) | (ids & (1 << shift) - 1)
        flipped = (candidate ^ ids)[:, None] >> shifts & 1  # [n, B]
        cost = (flipped * costs).sum(-1)
        better = cost < best_cost
        best = torch.where(better, candidate, best)
        best_cost = torch.where(better, cost, best_cost)
    return best


def pack(ids: np.ndarray, num_bits: int) -> np.ndarray:
    """ids [n] (n a multiple of 8) → bytes, uint8 [n·B/8], most significant bit first.

    Raises ConfigError if n is not a multiple of 8 or an id does not fit.
    """
    _check_bits(num_bits)
    if ids.ndim != 1 or len(ids) % _GROUP:
        raise ConfigError(f"pack takes one row of ids whose length is a multiple of {_GROUP}, got shape {ids.shape}")
    if len(ids):
        _check_range(int(ids.min()), int(ids.max()), num_bits)
    groups = np.ascontiguousarray(ids, dtype=np.uint32).reshape(-1, _GROUP)
    packed = np.empty(len(groups), dtype=_layout(num_bits))
    overlaps = _overlaps(num_bits)
    for start in range(0, len(groups), _CHUNK):
        part = slice(start, start + _CHUNK)
        tokens = groups[part].T.astype(np.uint64, order="C")  # [8, groups]
        for word, pieces in overlaps.items():
            bits = np.zeros(tokens.shape[1], dtype=np.uint64)
            for token, shift in pieces:
                bits |= _shift(tokens[token], shift)
            packed[word][part] = bits  # keeps the low bits, in the byte order of the field
    return packed.view(np.uint8)


def unpack(packed: Buffer, num_bits: int) -> np.ndarray:
    """The inverse of ``pack``: bytes (whole groups of B bytes) → ids, uint32 [n].

    Raises ConfigError if the bytes are not whole groups.
    """
    groups = _groups(packed, num_bits).view(_layout(num_bits))
    ids = np.empty((len(groups), _GROUP), dtype=np.uint32)
    overlaps = _overlaps(num_bits)
    mask = np.uint64((1 << num_bits) - 1)
    for start in range(0, len(groups), _CHUNK):
        part = slice(start, start + _CHUNK)
        tokens = np.zeros((_GROUP, len(groups[part])), dtype=np.uint64)
        for word, pieces in overlaps.items():
            bits = groups[word][part].astype(np.uint64)
            for token, shift in pieces:
                tokens[token] |= _shift(bits, -shift)
        tokens &= mask
        ids[part] = tokens.T
    return ids.reshape(-1)


def unpack_codes(packed: Buffer, num_bits: int) -> np.ndarray:
    """Packed bytes → codes [n, B] of ±1, float32, without the detour through ids."""
    return _BYTE_SIGNS.take(_groups(packed, num_bits), axis=0).reshape(-1, num_bits)


def _groups(packed: Buffer, num_bits: int) -> np.ndarray:
    _check_bits(num_bits)
    octets = np.frombuffer(packed, np.uint8)
    if len(octets) % num_bits:
        raise ConfigError(
            f"{len(octets)} packed bytes are not whole groups of {num_bits} bytes ({_GROUP} tokens at {num_bits} bits)"
        )
    return octets


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


def _shift(bits: np.ndarray, left: int) -> np.ndarray:
    return bits << np.uint64(left) if left >= 0 else bits >> np.uint64(-left)


def _shifts(num_bits: int, device: torch.device) -> Tensor:
    return torch.arange(num_bits - 1, -1, -1, device=device)


def _check_bits(num_bits: int) -> None:
    if not 1 <= num_bits <= MAX_BITS:
        raise ConfigError(f"num_bits = {num_bits}: choose 1 to {MAX_BITS}")


def _check_range(low: int, high: int, num_bits: int) -> None:
    if low < 0 or high >= 1 << num_bits:
        wrong = low if low < 0 else high
        raise ConfigError(f"token id {wrong} does not fit in num_bits = {num_bits} (0 to {(1 << num_bits) - 1})")
