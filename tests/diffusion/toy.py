"""A source of few code words with known probabilities and its exact posterior mean: oracle of sampler and bound."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
