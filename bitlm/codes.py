"""Binary codes φ of token ids: as ±1 coordinates (``encode``, ``decode``) and packed in bytes (``pack``, ``unpack``).

The code of id ``y`` is its ``B`` bits, most significant first, 0 → -1 and 1 → +1. Nothing is learned. Packing lives in
``bitlm.packing``, which needs no torch.
"""

from typing import Literal

import torch
from torch import Tensor

from bitlm.errors import ConfigError
from bitlm.packing import check_bits, check_range, pack, unpack

Void = Literal["clamp", "nearest"]
__all__ = ["Void", "decode", "encode", "min_bits", "pack", "unpack"]


def min_bits(vocab_size: int) -> int:
    """⌈log2 V⌉, the least B that gives every id its own code (at least 1)."""
    if vocab_size < 1:
        raise ConfigError(f"vocab_size = {vocab_size}: a vocabulary has at least one id")
    return max(1, (vocab_size - 1).bit_length())


def encode(ids: Tensor, num_bits: int, *, check: bool = True) -> Tensor:
    """φ: ids [...] (any integer type) → codes [..., B] of ±1, float32.

    Raises ConfigError if an id does not fit in ``num_bits`` bits. The check makes a GPU wait; ``check=False`` is for
    ids that are known to fit.
    """
    if check:
        check_bits(num_bits)
        if ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            check_range(low, high, num_bits)
    return ((ids.long()[..., None] >> _shifts(num_bits, ids.device)) & 1).float() * 2 - 1


def decode(codes: Tensor, vocab_size: int, void: Void = "clamp") -> Tensor:
    """φ⁻¹: the sign of each coordinate of codes [..., B] (any real values) → ids [...], int64, all below V.

    A void corner (an integer ≥ V) becomes ``V - 1`` with ``clamp``; with ``nearest`` it becomes the real id that costs
    least to reach, where flipping a bit costs the magnitude of its coordinate.

    Raises ConfigError if B bits cannot tell ``vocab_size`` ids apart.
    """
    num_bits = codes.shape[-1]
    check_bits(num_bits)
    if num_bits < min_bits(vocab_size):
        needed = min_bits(vocab_size)
        raise ConfigError(f"num_bits = {num_bits} is too small for {vocab_size} ids: at least {needed} are needed")
    ids = ((codes > 0).long() << _shifts(num_bits, codes.device)).sum(-1)
    if void == "clamp":
        return ids.clamp(max=vocab_size - 1)
    if void != "nearest":
        raise ConfigError(f"void = {void!r} is unknown; choose clamp or nearest")
    # Computed for every code: to look for the void ones first would make a GPU wait.
    nearest = _nearest(codes.reshape(-1, num_bits), ids.flatten(), vocab_size).view(ids.shape)
    return torch.where(ids >= vocab_size, nearest, ids)


def _nearest(codes_nB: Tensor, ids_n: Tensor, vocab_size: int) -> Tensor:
    """The id below V with the least flip cost, for codes [n, B] with integers ids [n], n codes of B bits.

    ``y < V`` holds iff at some place p, V has a 1 and y a 0 and both agree above p; below p, y is free and keeps its
    own bits. So the best id is among one candidate for each 1 of V.
    """
    shifts_B = _shifts(codes_nB.shape[-1], codes_nB.device)
    costs_nB = codes_nB.abs().double()
    best_cost_n = torch.full(ids_n.shape, torch.inf, dtype=torch.float64, device=ids_n.device)
    best_n = torch.zeros_like(ids_n)
    for shift in (s for s in range(codes_nB.shape[-1]) if vocab_size >> s & 1):
        candidate_n = (vocab_size >> shift + 1 << shift + 1) | (ids_n & (1 << shift) - 1)
        flipped_nB = (candidate_n ^ ids_n)[:, None] >> shifts_B & 1
        cost_n = (flipped_nB * costs_nB).sum(-1)
        better_n = cost_n < best_cost_n
        best_n = torch.where(better_n, candidate_n, best_n)
        best_cost_n = torch.where(better_n, cost_n, best_cost_n)
    return best_n


def _shifts(num_bits: int, device: torch.device) -> Tensor:
    return torch.arange(num_bits - 1, -1, -1, device=device)
