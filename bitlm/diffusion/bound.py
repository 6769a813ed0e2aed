"""An upper bound on -log p of a block under the diffusion head, in nats. The LM head's cross-entropy is exact.

With γ = ((1-t)/t)² the I-MMSE relation (Guo, Shamai and Verdú 2005; for discrete variables Kong, Brekelmans and Ver
Steeg, arXiv 2302.03792) gives, for the slots i of a block and any path along which no γ_i falls,

    -log p(A_0 | C) ≤ ½ Σ_i ∫ E‖A_0i - Â_0i(γ_1..γ_m)‖² dγ_i

from all γ_i = 0 to all ∞, with equality for the exact posterior mean; the parts of the sum are the figures per slot.
The path of ``stagger`` s raises log γ_i from -8 to 4.5 while a clock runs from i·s to i·s + 1: s = 0 moves all slots
together, s = 1 one after the other. The integral over the clock is taken by stratified sampling. Below, Â_0 = 0 errs by
exactly B per slot; above, the signs of A_t err with probability Φ(-√γ) < 1e-20 per bit.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bitlm.batch import Batch
from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import NO_OFFSETS, BlockShape, Noise, Stream, generator
from bitlm.diffusion.process import t_of_log_snr
from bitlm.errors import ConfigError

LOG_SNR = (-8.0, 4.5)
SQUARED_ERROR = DiffusionConfig(loss="x")


class Nats(NamedTuple):
    """Nats per token and the standard error of that mean over sequences (infinite for a single one)."""

    mean: float
    stderr: float


@dataclass(frozen=True)
class Bound:
    """``mean`` and ``stderr`` as in ``Nats``, over all tokens; ``slots``: the same for each place in a block."""

    mean: float
    stderr: float
    slots: tuple[Nats, ...]

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """For text with so many UTF-8 bytes per token."""
        return self.mean / math.log(2) / bytes_per_token


@dataclass(frozen=True)
class NoisePath:
    """The noise levels at which a block is looked at: ``strata`` of them, along the path of ``stagger``, 0 to 1."""

    strata: int = 4
    stagger: float = 0.0


JOINT = NoisePath()


class ScoredModel(Protocol):
    """What the bound needs of a model: ``BitLMForCausalLM``, whole or sharded."""

    config: Any
    training: bool

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None, **options: Any) -> Any: ...
    def eval(self) -> Any: ...
    def train(self, mode: bool) -> Any: ...


def path_noise(seed: int, indices: Sequence[int], shape: BlockShape, path: NoisePath) -> tuple[Noise, Tensor]:
    """Noise for each sequence index along a path, and the weight in nats of each squared error per bit, float64 and
    shaped like ``Noise.t`` [b, N, strata, 1 or m]: the bound of a slot is the sum over strata, plus ``tail_nats``.

    Draw s of a block has its clock in the s-th of equal parts; the noise itself is the same along every path.
    """
    low, high = LOG_SNR
    N, m, B = shape
    strata, stagger = path.strata, path.stagger
    eps_bNsmB = np.empty((len(indices), N, strata, m, B), dtype=np.float32)
    share_bNs1 = np.empty((len(indices), N, strata, 1))
    for row, index in enumerate(indices):
        rng = generator(seed, Stream.BOUND, index, 0)
        rng.standard_normal(out=eps_bNsmB[row], dtype=np.float32)
        share_bNs1[row, ..., 0] = (np.arange(strata) + rng.random((N, strata))) / strata
    starts_m = stagger * np.arange(m if stagger else 1)
    length = 1 + (m - 1) * stagger
    clock_bNsm = torch.from_numpy(share_bNs1 * length - starts_m)  # each slot's own
    log_snr_bNsm = low + (high - low) * clock_bNsm.clamp(0, 1)
    moving_bNsm = (clock_bNsm > 0) & (clock_bNsm < 1)
    weights_bNsm = log_snr_bNsm.exp() * moving_bNsm * (length * (high - low) * B / (2 * strata))  # dγ = γ d(log γ)
    drop_bN = torch.zeros(len(indices), N, dtype=torch.bool)
    t_bNsm = t_of_log_snr(log_snr_bNsm).float()
    return Noise(torch.from_numpy(eps_bNsmB), t_bNsm, drop_bN, ~drop_bN, NO_OFFSETS), weights_bNsm


def tail_nats(B: int) -> float:
    """The part of the bound of a slot below the lowest γ."""
    return math.exp(LOG_SNR[0]) * B / 2


@torch.no_grad()
def validation_nats(model: ScoredModel, batch: Batch, seed: int, path: NoisePath = JOINT) -> tuple[Tensor, Tensor]:
    """Per sequence of the batch: nats of the tokens that carry loss, summed for each slot of the blocks [b, m]
    (float64), and the number of these tokens [b, m].

    Diffusion head: the bound, with ``path.strata`` noise levels per block keyed by (seed, index). LM head:
    cross-entropy. Calls the model as a whole, so it works on a sharded model; restores the model's mode.
    """
    config = model.config
    b, L = batch.input_ids.shape
    if len(batch.indices) != b:
        raise ConfigError(f"{len(batch.indices)} indices for {b} sequences: give one for each")
    noise = None
    if config.head == "diffusion":
        shape = BlockShape(L // config.block_size, config.block_size, config.num_bits)
        noise, weights_bNsm = path_noise(seed, batch.indices, shape, path)
        noise, weights_bNsm = noise.to(batch.input_ids.device), weights_bNsm.to(batch.input_ids.device)
    training = model.training
    model.eval()
    output = model(
        batch.input_ids, batch.attention_mask, noise=noise, loss_tokens=batch.loss_tokens, diffusion=SQUARED_ERROR
    )
    model.train(training)
    loss_bNsm = output.slot_loss.double()
    nats_bNm = loss_bNsm.squeeze(2) if noise is None else (loss_bNsm * weights_bNsm).sum(2) + tail_nats(config.num_bits)
    return (nats_bNm * output.in_loss).sum(1), output.in_loss.sum(1)


def nats_per_token(
    model: ScoredModel, batches: Iterable[Batch], seed: int = 0, *, strata: int = 16, stagger: float = 0.0
) -> Bound:
    """The bound of the diffusion head, or the LM head's cross-entropy, in nats per token.

    Noise belongs to (seed, index), so how sequences are put into batches changes nothing.

    strata: noise levels per block; more make the standard error smaller, at a head pass each.
    stagger: 0 to 1, the path (see above); the LM head has none.

    Raises ConfigError if no token carries loss, or the number of indices is not that of the sequences.
    """
    parts = [validation_nats(model, batch, seed, NoisePath(strata, stagger)) for batch in batches]
    return combine(torch.cat([nats for nats, _ in parts]), torch.cat([tokens for _, tokens in parts]))


def combine(nats: Tensor, tokens: Tensor) -> Bound:
    """Sums per sequence and slot, nats [sequences, m] over so many tokens [sequences, m] → the ratio estimates, NaN for
    a slot without a token.

    Raises ConfigError if there is no token at all.
    """
    if int(tokens.sum()) == 0:
        raise ConfigError("no token carries loss: there is nothing to average")
    slots = tuple(_ratio(nats[:, slot], tokens[:, slot]) for slot in range(nats.shape[1]))
    return Bound(*_ratio(nats.sum(1), tokens.sum(1)), slots)


def _ratio(nats: Tensor, tokens: Tensor) -> Nats:
    """Both [sequences]: Σ nats / Σ tokens with the standard error of a ratio estimate."""
    count = int(tokens.sum())
    if count == 0:
        return Nats(math.nan, math.nan)
    mean = float(nats.sum()) / count
    n = len(nats)
    if n == 1:
        return Nats(mean, math.inf)
    spread = float(((nats - mean * tokens) ** 2).sum()) * n / (n - 1)
    return Nats(mean, math.sqrt(spread) / count)
