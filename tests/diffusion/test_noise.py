"""Noise: a pure function of what it belongs to, with the promised distributions."""

import numpy as np
import pytest
import torch

from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import Noise, block_noise, sample_noise, token_uniform

SHAPE = {"N": 6, "m": 4, "B": 11}


def rows(noise: Noise, row: int) -> list[torch.Tensor]:
    return [tensor[row] for tensor in (noise.eps, noise.t, noise.drop)]


def test_a_sequences_noise_does_not_depend_on_its_batch() -> None:
    diffusion = DiffusionConfig(noise_draws=3, condition_dropout=0.5)
    batch = block_noise(1, [9, 4, 700_000_000_000], [0, 2, 1], diffusion=diffusion, **SHAPE)
    assert batch.eps.shape == (3, 6, 3, 4, 11)
    assert batch.t.shape == (3, 6, 3, 1)
    assert batch.drop.shape == (3, 6)
    assert (batch.eps.dtype, batch.t.dtype, batch.drop.dtype) == (torch.float32, torch.float32, torch.bool)
    for row, (index, epoch) in enumerate([(9, 0), (4, 2), (700_000_000_000, 1)]):
        alone = block_noise(1, [index], [epoch], diffusion=diffusion, **SHAPE)
        for a, b in zip(rows(batch, row), rows(alone, 0), strict=True):
            assert torch.equal(a, b)


def test_seed_index_and_epoch_each_matter() -> None:
    keys = [(s, i, e) for s in (0, 1, 2**63, 2**63 + 1, -1) for i in (0, 1, 2) for e in (0, 1, 2)]
    noises = (block_noise(s, [i], [e], diffusion=DiffusionConfig(), **SHAPE) for s, i, e in keys)
    seen = {tuple(noise.eps.flatten().tolist()) for noise in noises}
    assert len(seen) == len(keys)
    firsts = {sample_noise(s, i, e, 4, 11).flatten()[0].item() for s, i, e in keys}
    assert len(firsts) == len(keys)
    assert len({token_uniform(s, i, e) for s, i, e in keys}) == len(keys)


def test_streams_are_apart() -> None:
    train = block_noise(0, [3], [1], diffusion=DiffusionConfig(), **SHAPE).eps.flatten()
    sample = sample_noise(0, 3, 1, 4, 11).flatten()
    assert not set(train.tolist()) & set(sample.tolist())


def test_values_are_recorded_forever() -> None:
    """Another numpy or an edit must not change the noise of a training run under way."""
    noise = block_noise(7, [5], [2], 1, 1, 2, DiffusionConfig())
    rng = np.random.Generator(np.random.Philox(key=[7, 1], counter=[0, 0, 5, 2]))
    assert noise.eps.flatten().tolist() == rng.standard_normal(2, dtype=np.float32).tolist()


def test_distributions() -> None:
    diffusion = DiffusionConfig(t_mean=0.8, t_std=0.5, condition_dropout=0.1)
    noise = block_noise(3, range(40), [0] * 40, 500, 1, 4, diffusion)
    n = noise.t.numel()
    logit = noise.t.logit()
    assert logit.mean().item() == pytest.approx(0.8, abs=5 * 0.5 / n**0.5)
    assert logit.std().item() == pytest.approx(0.5, abs=0.02)
    assert noise.drop.float().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / n) ** 0.5)
    assert noise.eps.mean().item() == pytest.approx(0, abs=5 / (4 * n) ** 0.5)
    assert noise.eps.std().item() == pytest.approx(1, abs=0.02)
    assert not block_noise(3, [0], [0], 500, 1, 4, DiffusionConfig(condition_dropout=0)).drop.any()


def test_slot_noise_gives_a_share_of_the_blocks_a_level_per_slot() -> None:
    shape = {"N": 400, "m": 4, "B": 3}
    shared = block_noise(1, range(20), [0] * 20, diffusion=DiffusionConfig(noise_draws=2), **shape)
    diffusion = DiffusionConfig(noise_draws=2, slot_noise=0.7, condition_dropout=0.5)
    noise = block_noise(1, range(20), [0] * 20, diffusion=diffusion, **shape)
    assert noise.t.shape == (20, 400, 2, 4)
    assert torch.equal(noise.eps, shared.eps)
    equal = (noise.t == noise.t[..., :1]).all(-1)
    assert torch.equal(noise.t[equal], shared.t.expand_as(noise.t)[equal])  # the others stay as they were
    own = noise.t[~equal]
    assert len(own) / equal.numel() == pytest.approx(0.7, abs=5 * (0.21 / equal.numel()) ** 0.5)
    logit = own.logit()
    assert logit.mean(0).tolist() == pytest.approx([0.8] * 4, abs=5 * 0.8 / len(own) ** 0.5)
    assert logit.std(0).tolist() == pytest.approx([0.8] * 4, abs=0.03)
    assert torch.corrcoef(logit.T).fill_diagonal_(0).abs().max() < 5 / len(own) ** 0.5


def test_sorted_slot_noise_makes_earlier_slots_cleaner() -> None:
    diffusion = DiffusionConfig(slot_noise=1.0, slot_order="sorted")
    t = block_noise(1, range(4), [0] * 4, 200, 4, 3, diffusion).t
    assert (t.diff(dim=-1) >= 0).all()
    assert (t.diff(dim=-1) > 0).float().mean() > 0.99
    free = block_noise(1, range(4), [0] * 4, 200, 4, 3, DiffusionConfig(slot_noise=1.0)).t
    assert torch.equal(t, free.sort(dim=-1).values)


def test_uniform_levels() -> None:
    t = block_noise(0, range(40), [0] * 40, 500, 1, 4, DiffusionConfig(t_distribution="uniform")).t
    shares = torch.histc(t, bins=10, min=0, max=1) / t.numel()
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=5 * (0.09 / t.numel()) ** 0.5)
    assert 0 < t.min() < t.max() < 1
