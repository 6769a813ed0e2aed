"""The backbone's view of a sequence [start block | tokens]: who sees whom, and at which position each vector stands."""

from functools import lru_cache

import torch
from torch import Tensor


def block_causal_mask(length: int, m: int, device: torch.device | str = "cpu") -> Tensor:
    """[length, length] bool: position i sees position j iff ⌊j/m⌋ ≤ ⌊i/m⌋."""
    block = torch.arange(length, device=device) // m
    return block[None, :] <= block[:, None]


@lru_cache(maxsize=8)
def _cached_mask(length: int, m: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the same tensor serves training
        return block_causal_mask(length, m, device)


def training_mask(length: int, m: int, visible: Tensor | None, device: torch.device) -> Tensor | None:
    """Mask for one pass over whole sequences, [b or 1, 1, length, length], True = sees.

    ``visible`` [b, length] is False on padding. None means causal, for which the attention kernels need no mask.
    """
    if visible is None:
        return None if m == 1 else _cached_mask(length, m, device)[None, None]
    return _cached_mask(length, m, device)[None, None] & visible[:, None, None, :]


def positions(visible: Tensor, m: int) -> Tensor:
    """Positions [b, length] for left-padded rows whose first m entries are the start block.

    Whole blocks of padding are not counted, so the first block with a token always stands right behind the start block.
    """
    length = visible.shape[1]
    padding_blocks = (length - visible.sum(dim=1, keepdim=True)) // m  # [b, 1]
    index = torch.arange(length, device=visible.device)[None]
    shifted = (index - padding_blocks * m).clamp(min=0)
    return torch.where(index < m, index, shifted)
