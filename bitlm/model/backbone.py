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


def attention_mask(
    queries: int, past: int, m: int, visible_bS: Tensor | None, device: torch.device, always: bool = False
) -> Tensor | None:
    """Mask for the last ``queries`` places of S = past + queries, [b or 1, 1, queries, S], True = sees.

    ``visible`` is False on padding. With a cache (past > 0) the queries are one block of the model; it sees all that is
    cached, and all of itself unless m is shorter. None where the attention kernels need no mask: then attention is
    causal without a cache, full with one. With ``always`` a mask is made also where it is causal.
    """
    if past and queries > m:
        causal_qS = torch.ones(queries, past + queries, dtype=torch.bool, device=device).tril(past)
        return causal_qS[None, None] if visible_bS is None else causal_qS & visible_bS[:, None, None, :]
    if past:
        return None if visible_bS is None else visible_bS[:, None, None, :].expand(-1, -1, queries, -1)
    if visible_bS is None:
        return None if m == 1 and not always else _cached_mask(queries, m, device)[None, None]
    return _cached_mask(queries, m, device)[None, None] & visible_bS[:, None, None, :]


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to scores: 0 where ``mask`` is True, else the lowest number of the type."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def positions(visible_bS: Tensor, m: int) -> Tensor:
    """Positions [b, S] for rows whose first m places are the start block, with padding on the left, the right or none.

    Whole blocks of padding on the left are not counted, so the first block with a token always follows the start block,
    and the block of padding before it has the start block's positions.
    """
    index = torch.arange(visible_bS.shape[1], device=visible_bS.device)[None]
    started_bS = visible_bS[:, m:].cumsum(dim=1) > 0
    padding_blocks_b1 = (~started_bS).sum(dim=1, keepdim=True) // m
    shifted = (index - padding_blocks_b1 * m).clamp(min=0)
    return torch.where(index < m, index, shifted)
