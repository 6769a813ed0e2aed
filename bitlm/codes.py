"""Binary codes φ of token ids: ±1 coordinates for the model, packed bits for storage.

The code of id ``y`` is its ``B`` bits, most significant first, 0 → -1 and 1 → +1. Nothing is learned. Packing works on
groups of 8 tokens, which take exactly ``B`` bytes for every ``B``; it goes through 64-bit words instead of single bits.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bitlm.errors import ConfigError

Buffer = bytes | bytearray | memoryview | np.ndarray

MAX_BITS = 32
_GROUP = 8  # tokens in one packed value
_CHUNK = 4096  # groups in work at once: the temporaries stay in the core's cache
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
    """φ⁻¹: the sign of each coordinate of codes [..., B] (any real values) → ids [...], int64, all below ``vocab_size``.

    A void corner (an integer ≥ V) becomes ``V - 1`` with ``clamp``; with ``nearest`` it becomes the real id that costs
    least to reach, where flipping a bit costs the magnitude of its coordinate.

    Raises ConfigError if B bits cannot tell ``vocab_size`` ids apart.
    """
    num_bits = codes.shape[-1]
    _check_bits(num_bits)
    if num_bits < min_bits(vocab_size):
        raise ConfigError(f"num_bits = {num_bits} is too small for {vocab_size} ids: at least {min_bits(vocab_size)} are needed")
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

    ``y < V`` holds iff at some place p, V has a 1 and y a 0 and both agree above p; below p, y is free and keeps its own
    bits. So the best id is among one candidate for each 1 of V.
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
    packed = np.empty((len(groups), num_bits), dtype=np.uint8)
    for start in range(0, len(groups), _CHUNK):
        part = groups[start : start + _CHUNK]
        words = np.zeros((_words(num_bits), len(part)), dtype=np.uint64)
        for token, word, shift in _overlaps(num_bits):
            value = part[:, token].astype(np.uint64)
            words[word] |= value << np.uint64(shift) if shift >= 0 else value >> np.uint64(-shift)
        as_bytes = words.byteswap().view(np.uint8).reshape(len(words), len(part), 8)  # [word, group, byte]
        for word, octets in enumerate(as_bytes):
            width = min(8, num_bits - 8 * word)
            packed[start : start + _CHUNK, 8 * word : 8 * word + width] = octets[:, :width]
    return packed.reshape(-1)


def unpack(packed: Buffer, num_bits: int) -> np.ndarray:
    """The inverse of ``pack``: bytes (whole groups of B bytes) → ids, uint32 [n].

    Raises ConfigError if the bytes are not whole groups.
    """
    groups = _groups(packed, num_bits)
    ids = np.empty((len(groups), _GROUP), dtype=np.uint32)
    mask = np.uint64((1 << num_bits) - 1)
    for start in range(0, len(groups), _CHUNK):
        part = groups[start : start + _CHUNK]
        octets = np.zeros((_words(num_bits), len(part), 8), dtype=np.uint8)
        for word in range(len(octets)):
            width = min(8, num_bits - 8 * word)
            octets[word, :, :width] = part[:, 8 * word : 8 * word + width]
        words = octets.reshape(len(octets), -1).view(np.uint64).byteswap()  # [word, group]
        values = np.zeros((_GROUP, len(part)), dtype=np.uint64)
        for token, word, shift in _overlaps(num_bits):
            values[token] |= words[word] >> np.uint64(shift) if shift >= 0 else words[word] << np.uint64(-shift)
        ids[start : start + _CHUNK] = (values & mask).astype(np.uint32).T
    return ids.reshape(-1)


def unpack_codes(packed: Buffer, num_bits: int) -> np.ndarray:
    """Packed bytes → codes [n, B] of ±1, float32, without the detour through ids."""
    return _BYTE_SIGNS[_groups(packed, num_bits).reshape(-1)].reshape(-1, num_bits)


def _groups(packed: Buffer, num_bits: int) -> np.ndarray:
    _check_bits(num_bits)
    octets = np.ascontiguousarray(packed).view(np.uint8).reshape(-1) if isinstance(packed, np.ndarray) else np.frombuffer(packed, np.uint8)
    if len(octets) % num_bits:
        raise ConfigError(f"{len(octets)} packed bytes are not whole groups of {_GROUP} tokens at {num_bits} bits ({num_bits} bytes each)")
    return octets.reshape(-1, num_bits)


def _words(num_bits: int) -> int:
    return -(-num_bits * _GROUP // 64)


def _overlaps(num_bits: int) -> Iterator[tuple[int, int, int]]:
    """(token, word, left shift) for every 64-bit word that holds bits of a token of the group; a negative shift goes right."""
    for token in range(_GROUP):
        end = (token + 1) * num_bits  # first bit after the token, counted from the group's most significant bit
        for word in range(token * num_bits // 64, (end - 1) // 64 + 1):
            yield token, word, 64 * (word + 1) - end


def _shifts(num_bits: int, device: torch.device) -> Tensor:
    return torch.arange(num_bits - 1, -1, -1, device=device)


def _check_bits(num_bits: int) -> None:
    if not 1 <= num_bits <= MAX_BITS:
        raise ConfigError(f"num_bits = {num_bits}: choose 1 to {MAX_BITS}")


def _check_range(low: int, high: int, num_bits: int) -> None:
    if low < 0 or high >= 1 << num_bits:
        wrong = low if low < 0 else high
        raise ConfigError(f"token id {wrong} does not fit in num_bits = {num_bits} (0 to {(1 << num_bits) - 1})")
