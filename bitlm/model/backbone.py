"""The backbone's view of a sequence [start block | tokens]: which position sees which, and where each vector stands."""

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


def attention_mask(queries: int, past: int, m: int, visible_bS: Tensor | None, device: torch.device) -> Tensor | None:
    """Mask for the last ``queries`` places of S = past + queries, [b or 1, 1, queries, S], True = sees.

    ``visible`` is False on padding. With a cache (past > 0) the queries are one block, which sees all that is cached
    and itself. None where the attention kernels need no mask: then attention is causal without a cache, full with one.
    """
    if past:
        return None if visible_bS is None else visible_bS[:, None, None, :].expand(-1, -1, queries, -1)
    if visible_bS is None:
        return None if m == 1 else _cached_mask(queries, m, device)[None, None]
    return _cached_mask(queries, m, device)[None, None] & visible_bS[:, None, None, :]


def positions(visible_bS: Tensor, m: int) -> Tensor:
    """Positions [b, S] for left-padded rows whose first m places are the start block.

    Whole blocks of padding are not counted, so the first block with a token always follows the start block.
    """
    length = visible_bS.shape[1]
    padding_blocks = (length - visible_bS.sum(dim=1, keepdim=True)) // m  # [b, 1]
    index = torch.arange(length, device=visible_bS.device)[None]
    shifted = (index - padding_blocks * m).clamp(min=0)
    return torch.where(index < m, index, shifted)
