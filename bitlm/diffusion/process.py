"""The forward process and its signal-to-noise ratio. t = 1 is pure noise, t = 0 is clean."""

import torch
from torch import Tensor


def corrupt(clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """A_t = (1-t)·A_0 + t·ε; shapes broadcast."""
    return (1 - t) * clean + t * eps


def matched_filter(noisy: Tensor, t: Tensor) -> Tensor:
    """2(1-t)·A_t/t², the posterior log-odds of independent fair bits given A_t (CoBit, arXiv 2605.07013).

    From log N(A_t; 1-t, t²) - log N(A_t; -(1-t), t²). Below t = 1e-4 the bits are certain by any measure, and t is held
    there so that the ratio stays finite in float32.
    """
    t = t.clamp(min=1e-4)
    return 2 * (1 - t) * noisy / t**2


def t_of_log_snr(log_snr: Tensor) -> Tensor:
    """The t at which γ = ((1-t)/t)² has the given logarithm."""
    return torch.sigmoid(-log_snr / 2)
