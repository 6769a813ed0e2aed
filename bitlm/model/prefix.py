"""One pass of the head over clean slots of a block and slots of pure noise behind prefixes of them, with causal
attention inside the block: what the pass sees of what, and what is kept of it for the next one."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PrefixPass:
    """c new clean slots and then q queries, each for a slot of pure noise behind a prefix of clean ones.

    slots: their numbers, [c + q]; queries: those of the queries, [q].
    mask: True where one sees a clean slot that was kept, a new one, or a query, [1, c + q, kept + c + q].
    levels: 0 for a clean slot and 1 for a query, [c + q].
    window: the m - 1 slots before each query, one of the clean ones in place of those that are none, [q·(m - 1)];
    seen: whether they are in its prefix, [q, m - 1, 1].
    """

    slots: Tensor
    queries: Tensor
    mask: Tensor
    levels: Tensor
    window: Tensor
    seen: Tensor

    @staticmethod
    @lru_cache(maxsize=64)
    def of(m: int, kept: int, new: int, pairs: tuple[tuple[int, int], ...], device: torch.device) -> "PrefixPass":
        """For ``new`` slots after the ``kept`` ones, and (slot, prefix) pairs."""
        with torch.inference_mode(False):  # the same tensors serve training
            queries, prefixes = torch.tensor(pairs, device=device).T
            clean = torch.arange(kept + new, device=device)
            q = len(pairs)
            of_clean = F.pad(clean <= clean[kept:, None], (0, q))
            own = torch.eye(q, dtype=torch.bool, device=device)
            of_queries = torch.cat([clean < prefixes[:, None], own], dim=1)
            window = queries[:, None] + torch.arange(1 - m, 0, device=device)
            seen = (window >= 0) & (window < prefixes[:, None])
            return PrefixPass(
                slots=torch.cat([clean[kept:], queries]),
                queries=queries,
                mask=torch.cat([of_clean, of_queries])[None],
                levels=torch.tensor([0] * new + [1] * q, device=device),
                window=window.clamp(0, max(kept + new - 1, 0)).flatten(),
                seen=seen[..., None],
            )

    @classmethod
    def every(cls, m: int, ahead: int, device: torch.device) -> "PrefixPass":
        """All slots of a block but the last are clean; behind each prefix, the ``ahead`` next ones as far as there are
        so many."""
        pairs = tuple((slot, prefix) for prefix in range(m) for slot in range(prefix, min(prefix + ahead, m)))
        return cls.of(m, 0, m - 1, pairs, device)

    @classmethod
    def following(cls, m: int, kept: int, new: int, ahead: int, device: torch.device) -> "PrefixPass":
        """``new`` clean slots after the ``kept`` ones, and the ``ahead`` slots behind all of these."""
        prefix = kept + new
        return cls.of(m, kept, new, tuple((prefix + i, prefix) for i in range(ahead)), device)


@dataclass
class KeptSlots:
    """What is kept of the ``count`` clean slots so far: for each layer keys and values [n, heads, places, head_dim],
    those of C before those of the slots, and their rows R̄ [n, count, R]."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    count: int = 0
    rows: Tensor | None = None

    def add(self, count: int, rows: Tensor | None) -> Tensor | None:
        """Count further slots; returns the rows of all."""
        self.count += count
        if rows is not None:
            self.rows = rows if self.rows is None else torch.cat([self.rows, rows], dim=1)
        return self.rows
