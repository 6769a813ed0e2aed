"""From noise to codes in K steps (the update and the guidance of the article)."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(A_t [n, m, B], t [1, 1]) → Â_0 [n, m, B]."""


def denoise_block(denoiser: Denoiser, noise: Tensor, num_steps: int) -> Tensor:
    """A_1 [n, m, B] → A_0 [n, m, B], whose signs are the codes. Calls the denoiser exactly ``num_steps`` (K) times.

    t_k = k/K and A_{t_{k-1}} = (t_{k-1}/t_k)·A_{t_k} + (1 - t_{k-1}/t_k)·Â_0; the last step lands on Â_0 itself.
    """
    assert num_steps >= 1
    current = noise
    for k in range(num_steps, 0, -1):
        t = torch.full((1, 1), k / num_steps, device=noise.device)
        current = torch.lerp(denoiser(current, t), current, (k - 1) / k)
    return current


def guided(denoiser: Denoiser, guidance_scale: float) -> Denoiser:
    """Â_0 = Â_null + ω·(Â_cond - Â_null), where ``denoiser`` answers for 2n rows: conditional ones first, then null.

    One call of the result is one batched call, but two function evaluations for each row.
    """

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        conditional, null = denoiser(torch.cat([noisy, noisy]), t).chunk(2)
        return null + guidance_scale * (conditional - null)

    return denoise


def calls_per_block(num_steps: int, guidance_scale: float) -> int:
    """Function evaluations (NFE) of the head for one block: K, or 2K with guidance (ω = 1 is none)."""
    return num_steps if guidance_scale == 1 else 2 * num_steps
