"""p(y | A_t, C), the answer of every denoiser: a distribution over the V real tokens of each slot. Whatever a loss, the
bound, a sampler or a trace needs is read from it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Posterior(Protocol):
    """Of s slots in each of n blocks."""

    def log_odds(self) -> Tensor:
        """log P(bit = 1) - log P(bit = 0), [n, s, B] float32; the mean code Â_0 is their ``to_codes``."""
        ...

    def best(self) -> tuple[Tensor, Tensor]:
        """The most probable token [n, s] int64, and its log p [n, s], nats."""
        ...

    def sample(self, uniform_ns: Tensor, temperature: float = 1.0) -> Tensor:
        """One token for each slot, [n, s] int64, of p^(1/temperature): the inverse of its distribution function, in the
        order of the ids, at the numbers ``uniform`` [n, s] float64 in [0, 1)."""
        ...

    def log_prob(self, ids_ns: Tensor) -> Tensor:
        """log p of given tokens [n, s], nats float32."""
        ...

    def guided(self, scale: float) -> "Posterior":
        """Of 2n blocks, the conditional ones first and then the null ones: log p_null + ω·(log p_cond - log p_null),
        normalized, of n blocks, for ω = ``scale``."""
        ...


@dataclass(frozen=True)
class BitPosterior:
    """Bits that are independent given (A_t, C), with log-odds ℓ: p(y) ∝ exp(½ φ(y)·ℓ) over the real tokens."""

    logits: Tensor
    vocab_size: int

    def log_odds(self) -> Tensor:
        return self.logits
