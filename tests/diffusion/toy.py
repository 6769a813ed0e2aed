"""A source of few code words with known probabilities and its exact posterior mean: oracle of sampler and bound."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitlm.codes import decode, encode


@dataclass
class Mixture:
    words: Tensor  # [w, m, B] of ±1
    probabilities: Tensor  # [w]

    def denoise(self, noisy: Tensor, t: Tensor) -> Tensor:
        """E[A_0 | A_t], for A_t [..., m, B] and t broadcastable to it, in float64 by Bayes' rule over the words."""
        noisy, t, words = noisy.double()[..., None, :, :], t.double()[..., None, :, :], self.words.double()
        log_likelihood = -((noisy - (1 - t) * words) ** 2 / (2 * t**2)).sum((-2, -1))  # [..., w]
        posterior = (log_likelihood + self.probabilities.double().log()).softmax(-1)
        return torch.einsum("...w,wmb->...mb", posterior, words).float()

    def entropy(self) -> float:
        return -float((self.probabilities.double() * self.probabilities.double().log()).sum())

    def posterior(self, noisy: Tensor, t: Tensor) -> "TablePosterior":
        """p(y_i | A_t) of every slot i over all 2^B tokens, for A_t [n, m, B] and t [n or 1, m]; 0 is clean."""
        t = t.double().clamp(min=1e-4)[..., None, :, None]
        words = self.words.double()
        log_likelihood = -((noisy.double()[:, None] - (1 - t) * words) ** 2 / (2 * t**2)).sum((-2, -1))  # [n, w]
        weights = (log_likelihood + self.probabilities.double().log()).softmax(-1)
        tokens = torch.nn.functional.one_hot(decode(self.words, 1 << words.shape[-1]), 1 << words.shape[-1]).double()
        return TablePosterior(torch.einsum("nw,wmv->nmv", weights, tokens).log(), words.shape[-1])


@dataclass
class TablePosterior:
    """A ``Posterior`` given as a table, log p [n, s, V], by the plainest means in float64."""

    log_p: Tensor
    num_bits: int

    def log_odds(self) -> Tensor:
        one = encode(torch.arange(self.log_p.shape[-1]), self.num_bits).T > 0  # [B, V]
        one_p = self.log_p[..., None, :].masked_fill(~one, -torch.inf).logsumexp(-1)
        zero_p = self.log_p[..., None, :].masked_fill(one, -torch.inf).logsumexp(-1)
        return (one_p - zero_p).float()

    def mode(self) -> Tensor:
        return self.log_p.argmax(-1)

    def best(self) -> tuple[Tensor, Tensor]:
        log_p, ids = self.log_p.max(-1)
        return ids, log_p.float()

    def sample(self, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        cumulative = (self.log_p / temperature).softmax(-1).cumsum(-1)
        return torch.searchsorted(cumulative, uniform[..., None] * cumulative[..., -1:], right=True).squeeze(-1)

    def log_prob(self, ids: Tensor) -> Tensor:
        return self.log_p.gather(-1, ids[..., None]).squeeze(-1).float()

    def guided(self, scale: float) -> "TablePosterior":
        conditional, null = self.log_p.chunk(2)
        return TablePosterior((null + scale * (conditional - null)).log_softmax(-1), self.num_bits)
