"""An upper bound on -log p of a block under the diffusion head, in nats. The LM head's cross-entropy is exact.

With γ = ((1-t)/t)² the I-MMSE relation (Guo, Shamai and Verdú 2005; for discrete variables Kong, Brekelmans and Ver
Steeg, arXiv 2302.03792) gives -log p(A_0 | C) ≤ ½ ∫₀^∞ E‖A_0 - Â_0(γ)‖² dγ, with equality for the exact posterior mean.
The integral is taken over log γ in [-8, 4.5] by stratified sampling. Below, Â_0 = 0 errs by exactly m·B; above, the
signs of A_t err with probability Φ(-√γ) < 1e-20 per bit.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlm.diffusion.noise import Noise, Stream, generator
from bitlm.diffusion.process import t_of_log_snr
from bitlm.errors import ConfigError

if TYPE_CHECKING:
    from bitlm.model.model import BitLMForCausalLM

LOG_SNR = (-8.0, 4.5)


class Nats(NamedTuple):
    """Nats per token and the standard error of that mean over sequences."""

    mean: float
    stderr: float


def stratified_noise(seed: int, indices: Sequence[int], N: int, m: int, B: int, strata: int) -> Noise:
    """Noise of the bound for each sequence index: draw s of a block has log γ uniform in the s-th of equal parts."""
    low, high = LOG_SNR
    eps = np.empty((len(indices), N, strata, m, B), dtype=np.float32)
    part = np.empty((len(indices), N, strata))
    for row, index in enumerate(indices):
        rng = generator(seed, Stream.BOUND, index, 0)
        rng.standard_normal(out=eps[row], dtype=np.float32)
        part[row] = (np.arange(strata) + rng.random((N, strata))) / strata
    t = t_of_log_snr(torch.from_numpy(low + (high - low) * part))
    return Noise(torch.from_numpy(eps), t.float(), torch.zeros(len(indices), N, dtype=torch.bool))


def nats_per_block(mean_squared_error: Tensor, t: Tensor, bits: int) -> Tensor:
    """Errors per bit at stratified levels t, both [..., strata] → the bound in nats [...]; ``bits`` = m·B of a block.

    ½∫e(γ)dγ = ½∫γ·e(γ) d(log γ), plus the part below the lowest γ.
    """
    low, high = LOG_SNR
    snr = ((1 - t.double()) / t.double()) ** 2
    integral = (high - low) * (snr * mean_squared_error.double() * bits).mean(-1)
    return (integral + math.exp(low) * bits) / 2


@torch.no_grad()
def validation_nats(
    model: "BitLMForCausalLM",
    input_ids: Tensor,
    attention_mask: Tensor | None,
    loss_blocks: Tensor | None,
    seed: int,
    indices: Sequence[int],
    *,
    strata: int = 4,
) -> tuple[Tensor, Tensor]:
    """ids [b, L] → per sequence: nats over its loss blocks [b] (float64) and the tokens in them [b] (int64).

    Diffusion head: the bound, with ``strata`` noise levels per block keyed by (seed, index). LM head: cross-entropy.
    Goes through ``model.forward``, so it works on a sharded model; puts the model's mode back.
    """
    config = model.config
    b, N, m = len(input_ids), input_ids.shape[1] // config.block_size, config.block_size
    if len(indices) != b:
        raise ConfigError(f"{len(indices)} indices for {b} sequences: give one for each")
    noise = None
    if config.head == "diffusion":
        noise = stratified_noise(seed, indices, N, m, config.num_bits, strata).to(input_ids.device)
    training = model.training
    model.eval()
    output = model(input_ids, attention_mask, noise=noise, loss_blocks=loss_blocks, objective="x")
    model.train(training)
    chosen = output.in_loss
    if noise is None:
        nats = output.block_loss.double().squeeze(-1)
    else:
        nats = nats_per_block(output.block_loss, noise.t, m * config.num_bits)
    return (nats * chosen).sum(1), chosen.sum(1) * m


def nats_per_token(
    model: "BitLMForCausalLM",
    batches: Iterable[tuple[Tensor, Tensor | None, Tensor | None, Sequence[int]]],
    seed: int = 0,
    *,
    strata: int = 16,
) -> Nats:
    """The bound (or cross-entropy) over batches of (input_ids, attention_mask, loss_blocks, indices)."""
    parts = [validation_nats(model, *tensors, seed, indices, strata=strata) for *tensors, indices in batches]
    return combine(torch.cat([nats for nats, _ in parts]), torch.cat([tokens for _, tokens in parts]))


def combine(nats: Tensor, tokens: Tensor) -> Nats:
    """Sums per sequence → nats per token with the standard error of a ratio estimate (infinite for a single sequence).

    Raises ConfigError if no token was counted.
    """
    count = int(tokens.sum())
    if count == 0:
        raise ConfigError("no token carries loss: there is nothing to average")
    mean = float(nats.sum()) / count
    n = len(nats)
    if n == 1:
        return Nats(mean, math.inf)
    spread = float(((nats - mean * tokens) ** 2).sum()) * n / (n - 1)
    return Nats(mean, math.sqrt(spread) / count)
