"""What the diffusion head computes once and uses at every denoising step: once per generation, and once per block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockState:
    """What follows from C alone, for n blocks. A field is None where the head has no such thing.

    condition: the image of C that the network is shown, [n, m, H].
    memory: keys and values of C in every layer, [n, layers, 2, heads, m, head_dim], with ``context_path="attention"``.
    context_log_odds: the bits' log-odds read from C, [n, m, B] float32, with ``context_path="direct"``.
    query: q = W·C of the codebook, [n, m, D], until there are scores in place of it.
    scores: E_y·q + log u_y of c tokens, [n, m, c] float32.
    rows, codes: R_y and φ(y) of these tokens where each slot has its own, [n, m, c, R] and [n, m, c, B]; None where the
        c tokens are all V.
    tokens: the ids of these tokens, rising, [n, m, c] int64; None where the c tokens are all V.
    """

    condition: Tensor
    memory: Tensor | None = None
    context_log_odds: Tensor | None = None
    query: Tensor | None = None
    scores: Tensor | None = None
    rows: Tensor | None = None
    codes: Tensor | None = None
    tokens: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def own_tokens(self) -> dict[str, Tensor]:
        """``rows``, ``codes`` and ``tokens``, where each slot has its own."""
        return {name: value for name, value in self.tensors().items() if name in ("rows", "codes", "tokens")}

    def map(self, change: Callable[[Tensor], Tensor]) -> "BlockState":
        return BlockState(**{name: change(tensor) for name, tensor in self.tensors().items()})

    def select(self, index: Tensor) -> "BlockState":
        """The blocks at these places [n'] (int64)."""
        return self.map(lambda tensor: tensor[index])

    def of_slots(self, slots: Tensor) -> "BlockState":
        """What belongs to the slots with these numbers [s] alone; the memory stays whole."""
        return self.map(lambda tensor: tensor if tensor is self.memory else tensor.index_select(1, slots))

    def repeat(self, times: int) -> "BlockState":
        """Every block ``times`` in a row."""
        return self.map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def halves(self) -> tuple["BlockState", "BlockState"]:
        """The first and the second half of the blocks."""
        n = len(self.condition) // 2
        return self.map(lambda tensor: tensor[:n]), self.map(lambda tensor: tensor[n:])

    def concatenate(self, other: "BlockState") -> "BlockState":
        """These blocks and then the others, which have the same fields."""
        others = other.tensors()
        return BlockState(**{name: torch.cat([tensor, others[name]]) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class HeadConstants:
    """What no context changes. The codebook's tables are None for a head without one.

    embedding: E [rows, D], of which the first V are those of tokens. rows: R [V, R], E or its low-rank copy.
    codes: φ [V, B]. log_unigram: log u [V].
    null: for guidance, one block whose C is the null condition.
    times: for a sampler, the embedding of each step's noise levels, [K, 1, m, H].
    ends: for clean prefixes, the embedding of t = 0 and of t = 1, [1, 2, H]; modulations: what the network makes of
        it, where C has no part in that.
    """

    embedding: Tensor | None = None
    rows: Tensor | None = None
    codes: Tensor | None = None
    log_unigram: Tensor | None = None
    null: BlockState | None = None
    times: Tensor | None = None
    ends: Tensor | None = None
    modulations: list[Tensor] | None = None
