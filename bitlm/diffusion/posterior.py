"""p(y | A_t, C), the answer of every denoiser: a distribution over the V real tokens of each slot. Whatever a loss, the
bound, a sampler or a trace needs is read from it."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitlm.codes import decode, encode

BELOW_ONE = math.nextafter(1.0, 0.0)


class Posterior(Protocol):
    """Of s slots in each of n blocks."""

    def log_odds(self) -> Tensor:
        """log P(bit = 1) - log P(bit = 0), [n, s, B] float32; the mean code Â_0 is their ``to_codes``."""
        ...

    def mode(self) -> Tensor:
        """The most probable token, [n, s] int64."""
        ...

    def best(self) -> tuple[Tensor, Tensor]:
        """``mode`` and its log p [n, s], nats, which costs a sum over all tokens."""
        ...

    def sample(self, uniform_ns: Tensor, temperature: float = 1.0) -> Tensor:
        """One token for each slot, [n, s] int64, of p^(1/temperature), normalized: by the inverse of the distribution
        function in the order of the ids, at ``uniform`` [n, s] float64 in [0, 1)."""
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
    """Of bits that are independent given (A_t, C), with log-odds ℓ = ``logits`` [n, s, B] float32: the real tokens have
    p(y) ∝ exp(½ φ(y)·ℓ). ``log_odds`` are ℓ, those of all 2^B corners, as the article has it.

    Exact in O(B) numbers per slot whatever V is: y < V iff at some place p, V has a 1 and y a 0 and both agree above p.
    So the real tokens are a union of subcubes, one for each 1 of V, in whose free bits all sums factor.
    """

    logits: Tensor
    vocab_size: int

    def log_odds(self) -> Tensor:
        return self.logits

    def mode(self) -> Tensor:
        return decode(self.logits, self.vocab_size, "nearest")

    def best(self) -> tuple[Tensor, Tensor]:
        ids_ns = self.mode()
        return ids_ns, self.log_prob(ids_ns)

    def sample(self, uniform_ns: Tensor, temperature: float = 1.0) -> Tensor:
        logits_nsB = self.logits.double() / temperature
        log_weights_nsc, places_c = self._subcubes(logits_nsB)
        cumulative_nsc = log_weights_nsc.softmax(-1).cumsum(-1)
        target_ns1 = uniform_ns[..., None] * cumulative_nsc[..., -1:]
        cube_ns1 = torch.searchsorted(cumulative_nsc, target_ns1, right=True)
        after_ns1 = cumulative_nsc.gather(-1, cube_ns1)
        before_ns1 = torch.where(cube_ns1 > 0, cumulative_nsc.gather(-1, (cube_ns1 - 1).clamp(min=0)), 0.0)
        # The number that is left over is uniform again, inside the subcube and then inside each half of it.
        rest_ns = ((target_ns1 - before_ns1) / (after_ns1 - before_ns1)).squeeze(-1).clamp(0, BELOW_ONE)
        place_ns = places_c[cube_ns1.squeeze(-1)]
        zero_nsB, one_nsB = torch.sigmoid(-logits_nsB), torch.sigmoid(logits_nsB)
        ids_ns, B = torch.zeros_like(place_ns), logits_nsB.shape[-1]
        for place in range(B):
            zero_ns, one_ns = zero_nsB[..., place], one_nsB[..., place]
            drawn_ns = rest_ns >= zero_ns
            left_ns = torch.where(drawn_ns, (rest_ns - zero_ns) / one_ns, rest_ns / zero_ns).clamp(max=BELOW_ONE)
            free_ns = place > place_ns
            given_ns = (place < place_ns) & bool(self.vocab_size >> B - 1 - place & 1)
            ids_ns = 2 * ids_ns + torch.where(free_ns, drawn_ns, given_ns)
            rest_ns = torch.where(free_ns, left_ns, rest_ns)
        return ids_ns

    def log_prob(self, ids_ns: Tensor) -> Tensor:
        logits_nsB = self.logits.double()
        log_weights_nsc, _ = self._subcubes(logits_nsB)
        codes_nsB = encode(ids_ns, logits_nsB.shape[-1], check=False)
        return ((logits_nsB / 2 * codes_nsB).sum(-1) - log_weights_nsc.logsumexp(-1)).float()

    def guided(self, scale: float) -> "BitPosterior":
        conditional, null = self.logits.chunk(2)
        return BitPosterior(null + scale * (conditional - null), self.vocab_size)

    def _subcubes(self, logits_nsB: Tensor) -> tuple[Tensor, Tensor]:
        """log Σ exp(½ φ(y)·ℓ) over each subcube, in the order of their ids, [n, s, c], and the place p of each, counted
        from the most significant bit [c]; -1 where all 2^B corners are one subcube of real tokens."""
        half_nsB, B = logits_nsB / 2, logits_nsB.shape[-1]
        free_nsB = half_nsB.abs() + torch.log1p(torch.exp(-2 * half_nsB.abs()))  # log 2cosh(ℓ/2)
        if self.vocab_size == 1 << B:
            return free_nsB.sum(-1, keepdim=True), torch.tensor([-1], device=half_nsB.device)
        places = [place for place in range(B) if self.vocab_size >> B - 1 - place & 1]
        code_B = [1 if place in places else -1 for place in range(B)]
        fixed_nsB = half_nsB * half_nsB.new_tensor(code_B)
        above_nsB = fixed_nsB.cumsum(-1) - fixed_nsB
        below_nsB = free_nsB.flip(-1).cumsum(-1).flip(-1) - free_nsB
        places_c = torch.tensor(places, device=half_nsB.device)
        return (above_nsB - half_nsB + below_nsB)[..., places_c], places_c
