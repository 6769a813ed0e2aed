"""The codebook's answer: p(y | A_t, C) over its tokens, all V or those that a sampler keeps, from scores that are
computed when something is asked, in chunks of slots where they are many."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bitlm.model.codebook import Codebook, bit_log_odds, posterior_scores, token_scores
from bitlm.model.state import BlockState, HeadConstants

Reduce = Callable[..., Any]
"""(log p + const [k, c] float32, codes [c, B] or [k, c, B], and more of the k slots) → what is asked of them."""


@dataclass(frozen=True)
class TokenPosterior:
    """``evidence`` ℓ [n, m, B] and ``correction`` a [n, m, R] are those of the slots of ``block``, where there are any.
    With ``scale`` the first half of the blocks is conditional and the second half null, as for ``guided``."""

    codebook: Codebook
    constants: HeadConstants
    block: BlockState
    evidence: Tensor | None = None
    correction: Tensor | None = None
    scale: float | None = None

    def log_odds(self) -> Tensor:
        return self._reduce(bit_log_odds)

    def mode(self) -> Tensor:
        def mode(log_p: Tensor, codes: Tensor, *tokens: Tensor) -> Tensor:
            return _id(log_p.argmax(-1), *tokens)

        return self._reduce(mode, *self._tokens())

    def best(self) -> tuple[Tensor, Tensor]:
        def best(log_p: Tensor, codes: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
            top, index = log_p.max(-1)
            return _id(index, *tokens), top - log_p.logsumexp(-1)

        return self._reduce(best, *self._tokens())

    def sample(self, uniform_nm: Tensor, temperature: float = 1.0) -> Tensor:
        def sample(log_p: Tensor, codes: Tensor, uniform: Tensor, *tokens: Tensor) -> Tensor:
            cumulative = (log_p.double() / temperature).softmax(-1).cumsum(-1)
            index = torch.searchsorted(cumulative, uniform[..., None] * cumulative[..., -1:], right=True)
            return _id(index.squeeze(-1).clamp(max=log_p.shape[-1] - 1), *tokens)

        return self._reduce(sample, uniform_nm, *self._tokens())

    def log_prob(self, ids_nm: Tensor) -> Tensor:
        """-∞ for a token that is not among those of the block."""
        if self.block.scores is None and self.scale is None:
            return self.codebook.log_prob(ids_nm, self.constants, self.block, self.evidence, self.correction)

        def log_prob(log_p: Tensor, codes: Tensor, ids: Tensor, *tokens: Tensor) -> Tensor:
            if not tokens:
                return log_p.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
            own = torch.where(tokens[0] == ids[..., None], log_p, -torch.inf).amax(-1)
            return own - log_p.logsumexp(-1)

        return self._reduce(log_prob, ids_nm, *self._tokens())

    def guided(self, scale: float) -> "TokenPosterior":
        assert self.scale is None
        return replace(self, scale=scale)

    def _tokens(self) -> list[Tensor]:
        """The ids of the tokens of each slot, where they are not all V."""
        tokens = self.block.tokens
        if tokens is None:
            return []
        return [tokens if self.scale is None else tokens[: len(tokens) // 2]]

    def _reduce(self, reduce: Reduce, *slots: Tensor) -> Any:
        """``reduce`` of log p + const of every slot; ``slots`` go along."""
        told = {"evidence": self.evidence, "correction": self.correction}
        names = [name for name, tensor in told.items() if tensor is not None]
        tensors = [tensor for tensor in told.values() if tensor is not None]
        width = len(names)
        if self.scale is None:

            def of_slots(scores: Tensor, rows: Tensor, codes: Tensor, *more: Tensor) -> Any:
                given = dict(zip(names, more[:width], strict=True))
                return reduce(posterior_scores(scores, rows, codes, **given), codes, *more[width:])

            return self.codebook.over_tokens(of_slots, self.constants, self.block, *tensors, *slots)
        conditional, null = self.block.halves()
        halves = [tensor.chunk(2) for tensor in tensors]

        def of_both(scores: Tensor, rows: Tensor, codes: Tensor, null_told: Tensor, *more: Tensor) -> Any:
            null_scores = token_scores(null_told, self.constants) if null.scores is None else null_told
            given = dict(zip(names, more[:width], strict=True))
            of_null = dict(zip(names, more[width : 2 * width], strict=True))
            log_p = posterior_scores(scores, rows, codes, **given).log_softmax(-1)
            null_log_p = posterior_scores(null_scores, rows, codes, **of_null).log_softmax(-1)
            return reduce(torch.lerp(null_log_p, log_p, self.scale), codes, *more[2 * width :])

        of_halves = [half[0] for half in halves], [half[1] for half in halves]
        null_told = null.query if null.scores is None else null.scores
        return self.codebook.over_tokens(
            of_both, self.constants, conditional, null_told, *of_halves[0], *of_halves[1], *slots
        )


def _id(index: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Places among the tokens [...] → ids; ``tokens`` [..., c], where they are not all V."""
    return index if tokens is None else tokens.gather(-1, index[..., None]).squeeze(-1)
