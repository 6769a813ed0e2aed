"""All randomness of training, validation and sampling, as pure functions of what it belongs to.

Each sequence (or example) owns a stream of numpy's counter-based Philox generator, whose key is (seed, purpose) and
whose counter starts at (index, epoch). Batch size, rank, padding and worker count therefore change nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlm.config import DiffusionConfig

_WORD = (1 << 64) - 1
ESTIMATED_SHARE = 0.5  # as Analog Bits, arXiv 2208.04202
NO_OFFSETS = torch.empty(1, 0, dtype=torch.int64)


class Stream(IntEnum):
    TRAIN = 1
    BOUND = 2
    SAMPLE = 3
    TOKEN = 4


class BlockShape(NamedTuple):
    """N blocks in a sequence, m slots in a block, B bits in a code."""

    N: int
    m: int
    B: int


@dataclass(frozen=True)
class NoiseKeys:
    """Whose noise it is: the ``indices`` of b sequences and the ``epochs`` that they are in, under a ``seed``."""

    seed: int
    indices: Sequence[int]
    epochs: Sequence[int]


@dataclass(frozen=True)
class Noise:
    """What corrupts a batch: ``eps`` [b, N, draws, m, B] standard normal, ``t`` in (0, 1), [b, N, draws, 1] where the
    slots of a block share a level and [b, N, draws, m] where they need not, ``drop`` [b, N], True where the condition
    is replaced by the null condition, and ``learn`` [b, N], True where the block learns from the draws; ``offsets`` [b,
    e] int64 of further blocks, in 1 to m - 1; ``flips`` [b, L, B], True where a bit of the backbone's input codes is
    flipped, None: nowhere; ``estimated`` [b, N, draws], True where a head with self-conditioning is told the Â_0 of a
    first pass, None: nowhere."""

    eps: Tensor
    t: Tensor
    drop: Tensor
    learn: Tensor
    offsets: Tensor
    flips: Tensor | None = None
    estimated: Tensor | None = None

    def to(self, device: torch.device) -> "Noise":
        return Noise(*(x if x is None else x.to(device, non_blocking=True) for x in vars(self).values()))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Noise":
        """With all that belongs to blocks changed."""
        estimated = None if self.estimated is None else change(self.estimated)
        return Noise(*map(change, (self.eps, self.t, self.drop, self.learn)), self.offsets, self.flips, estimated)

    def select(self, index: Tensor) -> "Noise":
        """Of these blocks [n]."""
        return self.map(lambda tensor: tensor[index])


def generator(seed: int, stream: Stream, first: int, second: int) -> np.random.Generator:
    """The random stream that belongs to (seed, stream; first, second); the low counter words are left to its draws."""
    # Explicit types: numpy would read a list that holds large numbers as float64, and round them.
    key = np.array([seed & _WORD, stream], dtype=np.uint64)
    counter = np.array([0, 0, first & _WORD, second & _WORD], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def block_noise(keys: NoiseKeys, shape: BlockShape, diffusion: DiffusionConfig) -> Noise:
    """Training noise: t follows ``t_distribution``; with slot noise a share of the (block, draw) pairs has a level of
    its own in every slot, and a ``prefix_share`` of them is a clean prefix and pure noise; a coin per block decides
    ``drop``, another ``learn``; the further offsets of a sequence are distinct; each bit is flipped by itself; a coin
    per draw decides ``estimated``."""
    b, d = len(keys.indices), diffusion.noise_draws if diffusion.noise_share else 0
    N, m, B = shape
    own_levels = diffusion.slot_noise > 0 or diffusion.prefix_share > 0
    eps_bNdmB = np.empty((b, N, d, m, B), dtype=np.float32)
    t_bNdm = np.empty((b, N, d, m if own_levels else 1), dtype=np.float32)
    coin_bN, learn_bN = np.empty((b, N)), np.ones((b, N), dtype=bool)
    offsets_be = np.empty((b, diffusion.block_offsets - 1), dtype=np.int64)
    flips_bLB = np.empty((b, N * m, B), dtype=bool) if diffusion.flip_share else None
    estimated_bNd = np.empty((b, N, d), dtype=bool)
    for row, (index, epoch) in enumerate(zip(keys.indices, keys.epochs, strict=True)):
        rng = generator(keys.seed, Stream.TRAIN, index, epoch)
        rng.standard_normal(out=eps_bNdmB[row], dtype=np.float32)
        t_bNdm[row] = _levels(rng, (N, d, 1), diffusion)
        coin_bN[row] = rng.random(N)
        if diffusion.slot_noise:
            own_Ndm = _levels(rng, (N, d, m), diffusion)
            chosen_Nd1 = rng.random((N, d, 1)) < diffusion.slot_noise
            t_bNdm[row] = np.where(chosen_Nd1, own_Ndm, t_bNdm[row])
        if diffusion.prefix_share:
            chosen_Nd1 = rng.random((N, d, 1)) < diffusion.prefix_share
            noisy_Ndm = np.arange(m) >= rng.integers(m, size=(N, d, 1))
            t_bNdm[row] = np.where(chosen_Nd1, noisy_Ndm, t_bNdm[row])
        if diffusion.noise_share < 1:
            learn_bN[row] = rng.random(N) < diffusion.noise_share
        if diffusion.block_offsets > 1:
            offsets_be[row] = 1 + rng.permutation(m - 1)[: diffusion.block_offsets - 1]
        if flips_bLB is not None:
            flips_bLB[row] = rng.random((N * m, B)) < diffusion.flip_share
        estimated_bNd[row] = rng.random((N, d)) < ESTIMATED_SHARE
    drop_bN = coin_bN < diffusion.condition_dropout
    flips = None if flips_bLB is None else torch.from_numpy(flips_bLB)
    estimated = torch.from_numpy(estimated_bNd)
    return Noise(*map(torch.from_numpy, (eps_bNdmB, t_bNdm, drop_bN, learn_bN, offsets_be)), flips, estimated)


def _levels(rng: np.random.Generator, shape: tuple[int, ...], diffusion: DiffusionConfig) -> np.ndarray:
    """Noise levels t, float32, strictly between 0 and 1."""
    if diffusion.t_distribution == "uniform":
        t = diffusion.t_low + (1 - diffusion.t_low) * rng.random(shape)
    else:
        t = 1 / (1 + np.exp(-(diffusion.t_mean + diffusion.t_std * rng.standard_normal(shape))))
    if diffusion.t_distribution == "logit_normal" and diffusion.uniform_share:
        uniform = diffusion.t_low + (1 - diffusion.t_low) * rng.random(shape)
        t = np.where(rng.random(shape) < diffusion.uniform_share, uniform, t)
    return t.clip(1e-6, 1 - 1e-6).astype(np.float32)


def sample_noise(seed: int, example_id: int, block: int, m: int, B: int) -> Tensor:
    """The start A_1 of generation, [m, B], for the ``block``-th generated block of an example."""
    rng = generator(seed, Stream.SAMPLE, example_id, block)
    return torch.from_numpy(rng.standard_normal((m, B), dtype=np.float32))


def token_uniform(seed: int, example_id: int, position: int) -> float:
    """One number in [0, 1), for sampling the ``position``-th generated token of an example from the LM head."""
    return float(generator(seed, Stream.TOKEN, example_id, position).random())
