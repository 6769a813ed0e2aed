"""Noise: a pure function of what it belongs to, with the promised distributions."""

import pytest
import torch

from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise, sample_noise, token_uniform

SHAPE = BlockShape(N=6, m=4, B=11)
# The first draws of the streams of seed 7, sequence or example 5, epoch or block 2.
EPS = [
    1.9108309745788574,
    -1.8000292778015137,
    0.5801858901977539,
    1.1381118297576904,
    -1.1521364450454712,
    0.26861491799354553,
    0.1029137521982193,
    -0.2695615291595459,
]
T = [0.7236447334289551, 0.7780441045761108]
DROP = [False, False]
SAMPLE = [-2.303065299987793, 0.3195781111717224, -1.3751397132873535]
UNIFORM = 0.30768440000987796


def rows(noise: Noise, row: int) -> list[torch.Tensor]:
    return [tensor[row] for tensor in (noise.eps, noise.t, noise.drop)]


def test_a_sequences_noise_does_not_depend_on_its_batch() -> None:
    diffusion = DiffusionConfig(noise_draws=3, condition_dropout=0.5)
    batch = block_noise(NoiseKeys(1, [9, 4, 700_000_000_000], [0, 2, 1]), SHAPE, diffusion)
    assert batch.eps.shape == (3, 6, 3, 4, 11)
    assert batch.t.shape == (3, 6, 3, 1)
    assert batch.drop.shape == (3, 6)
    assert (batch.eps.dtype, batch.t.dtype, batch.drop.dtype) == (torch.float32, torch.float32, torch.bool)
    for row, (index, epoch) in enumerate([(9, 0), (4, 2), (700_000_000_000, 1)]):
        alone = block_noise(NoiseKeys(1, [index], [epoch]), SHAPE, diffusion)
        for a, b in zip(rows(batch, row), rows(alone, 0), strict=True):
            assert torch.equal(a, b)


def test_seed_index_and_epoch_each_matter() -> None:
    keys = [(s, i, e) for s in (0, 1, 2**63, 2**63 + 1, -1) for i in (0, 1, 2) for e in (0, 1, 2)]
    noises = (block_noise(NoiseKeys(s, [i], [e]), SHAPE, DiffusionConfig()) for s, i, e in keys)
    seen = {tuple(noise.eps.flatten().tolist()) for noise in noises}
    assert len(seen) == len(keys)
    firsts = {sample_noise(s, i, e, 4, 11).flatten()[0].item() for s, i, e in keys}
    assert len(firsts) == len(keys)
    assert len({token_uniform(s, i, e) for s, i, e in keys}) == len(keys)


def test_streams_are_apart() -> None:
    train = block_noise(NoiseKeys(0, [3], [1]), SHAPE, DiffusionConfig()).eps.flatten()
    sample = sample_noise(0, 3, 1, 4, 11).flatten()
    assert not set(train.tolist()) & set(sample.tolist())


def test_values_are_recorded() -> None:
    """Another numpy or an edit must not change the noise of a training that is under way."""
    noise = block_noise(NoiseKeys(7, [5], [2]), BlockShape(2, 2, 2), DiffusionConfig(condition_dropout=0.5))
    assert noise.eps.flatten().tolist() == EPS
    assert noise.t.flatten().tolist() == T
    assert noise.drop.flatten().tolist() == DROP
    assert sample_noise(7, 5, 2, 1, 3).flatten().tolist() == SAMPLE
    assert token_uniform(7, 5, 2) == UNIFORM


def test_distributions() -> None:
    diffusion = DiffusionConfig(t_mean=0.8, t_std=0.5, condition_dropout=0.1)
    noise = block_noise(NoiseKeys(3, range(40), [0] * 40), BlockShape(500, 1, 4), diffusion)
    n = noise.t.numel()
    logit = noise.t.logit()
    assert logit.mean().item() == pytest.approx(0.8, abs=5 * 0.5 / n**0.5)
    assert logit.std().item() == pytest.approx(0.5, abs=0.02)
    assert noise.drop.float().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / n) ** 0.5)
    assert noise.eps.mean().item() == pytest.approx(0, abs=5 / (4 * n) ** 0.5)
    assert noise.eps.std().item() == pytest.approx(1, abs=0.02)
    never = DiffusionConfig(condition_dropout=0)
    assert not block_noise(NoiseKeys(3, [0], [0]), BlockShape(500, 1, 4), never).drop.any()


def test_slot_noise_gives_a_share_of_the_blocks_a_level_per_slot() -> None:
    keys, shape = NoiseKeys(1, range(20), [0] * 20), BlockShape(400, 4, 3)
    shared = block_noise(keys, shape, DiffusionConfig(noise_draws=2))
    diffusion = DiffusionConfig(noise_draws=2, slot_noise=0.7, condition_dropout=0.5)
    noise = block_noise(keys, shape, diffusion)
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


def test_uniform_levels() -> None:
    t = block_noise(
        NoiseKeys(0, range(40), [0] * 40), BlockShape(500, 1, 4), DiffusionConfig(t_distribution="uniform")
    ).t
    shares = torch.histc(t, bins=10, min=0, max=1) / t.numel()
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=5 * (0.09 / t.numel()) ** 0.5)
    assert 0 < t.min() < t.max() < 1


def drawn(**options) -> Noise:
    return block_noise(NoiseKeys(1, range(20), [0] * 20), BlockShape(400, 4, 3), DiffusionConfig(**options))


def share(chosen: torch.Tensor, expected: float) -> None:
    found = chosen.float().mean().item()
    assert found == pytest.approx(expected, abs=5 * (expected * (1 - expected) / chosen.numel()) ** 0.5)


def test_a_share_of_the_draws_is_a_clean_prefix_and_pure_noise() -> None:
    """Every length is as likely as every other; the other draws stay as they were."""
    options = {"noise_draws": 2, "slot_noise": 0.5}
    noise, before = drawn(**options, prefix_share=0.3), drawn(**options)
    assert noise.t.shape == (20, 400, 2, 4)
    assert torch.equal(noise.eps, before.eps)
    ends = ((noise.t == 0) | (noise.t == 1)).all(-1)
    share(ends, 0.3)
    assert torch.equal(noise.t[~ends], before.t[~ends])
    clean = (noise.t[ends] == 0).sum(-1)
    assert torch.equal(noise.t[ends], (torch.arange(4) >= clean[:, None]).float())
    for length in range(4):
        share(clean == length, 0.25)
    alone = drawn(prefix_share=0.3).t  # without slot noise: a level that the slots share, or a prefix
    assert alone.shape == (20, 400, 1, 4)
    assert ((alone == alone[..., :1]).all(-1) | ((alone == 0) | (alone == 1)).all(-1)).all()


def test_a_share_of_logit_normal_levels_is_uniform() -> None:
    t = drawn(uniform_share=0.25, t_low=0.2, t_mean=-6.0, t_std=0.1).t
    uniform = t > 0.1  # the others are near 0.0025
    share(uniform, 0.25)
    t = t[uniform]
    assert 0.2 < t.min() < 0.21
    assert 0.99 < t.max() < 1
    shares = torch.histc(t, bins=8, min=0.2, max=1) / t.numel()
    assert shares.tolist() == pytest.approx([0.125] * 8, abs=5 * (0.11 / t.numel()) ** 0.5)


def test_uniform_levels_have_a_least_one() -> None:
    t = drawn(t_distribution="uniform", t_low=0.4, slot_noise=1.0).t
    assert 0.4 < t.min() < 0.401
    assert t.mean().item() == pytest.approx(0.7, abs=5 * 0.6 / 12**0.5 / t.numel() ** 0.5)
    assert torch.equal(drawn(t_distribution="uniform", uniform_share=0.5).t, drawn(t_distribution="uniform").t)


def test_a_share_of_the_blocks_learns_from_its_draws() -> None:
    share(drawn(noise_share=0.3).learn, 0.3)
    assert drawn().learn.all()
    nothing = drawn(noise_share=0.0, chain_slots=1, noise_draws=3)
    assert nothing.eps.shape == (20, 400, 0, 4, 3)
    assert nothing.t.shape[2] == 0
    assert not nothing.learn.any()
    share(nothing.drop, 0.1)


def test_offsets_are_distinct_and_belong_to_the_sequence_and_its_epoch() -> None:
    indices, diffusion = range(300), DiffusionConfig(block_offsets=3, noise_share=0.5)
    noise = block_noise(NoiseKeys(1, indices, [2] * 300), BlockShape(2, 4, 3), diffusion)
    assert noise.offsets.dtype == torch.int64
    assert noise.offsets.shape == (300, 2)
    assert ((noise.offsets >= 1) & (noise.offsets <= 3)).all()
    assert (noise.offsets[:, 0] != noise.offsets[:, 1]).all()
    for offset in range(1, 4):
        share(noise.offsets[:, 0] == offset, 1 / 3)
    for row in (0, 7, 299):
        alone = block_noise(NoiseKeys(1, [row], [2]), BlockShape(2, 4, 3), diffusion)
        assert torch.equal(alone.offsets[0], noise.offsets[row])
        assert torch.equal(alone.learn[0], noise.learn[row])
    for seed, epoch in ((1, 3), (2, 2)):
        other = block_noise(NoiseKeys(seed, indices, [epoch] * 300), BlockShape(2, 4, 3), diffusion)
        assert not torch.equal(other.offsets, noise.offsets)
    every = block_noise(NoiseKeys(1, indices, [2] * 300), BlockShape(2, 4, 3), DiffusionConfig(block_offsets=4))
    assert every.offsets.sort(-1).values.tolist() == [[1, 2, 3]] * 300


def test_further_options_leave_the_draws_of_the_others_alone() -> None:
    before = drawn(noise_draws=2)
    after = drawn(noise_draws=2, prefix_share=0.0, noise_share=0.5, block_offsets=4, chain_slots=2, next_token_weight=1)
    for one, other in zip((before.eps, before.t, before.drop), (after.eps, after.t, after.drop), strict=True):
        assert torch.equal(one, other)
