"""The sampler on posteriors known in closed form, against step-by-step loops, and the table of noise levels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Mixture

from bitlm.codes import decode, encode
from bitlm.diffusion.sampler import (
    Denoised,
    RealCodes,
    Schedule,
    calls_per_step,
    commit_steps,
    denoise_block,
    denoise_until_committed,
    guide,
    noise_levels,
)
from bitlm.errors import ConfigError

# The slots of these words depend on each other: no product over slots has this distribution.
SOURCE = Mixture(
    words=torch.tensor([[[1, 1, 1], [1, 1, 1]], [[1, -1, 1], [-1, -1, 1]], [[-1, -1, -1], [1, -1, -1]]]).float(),
    probabilities=torch.tensor([0.5, 0.3, 0.2]),
)
ALL_CORNERS = RealCodes(vocab_size=8)  # every code of 3 bits is a real token
NOISE = torch.randn(20_000, 2, 3, generator=torch.Generator().manual_seed(0))


class Counting:
    """A denoiser that notes the level and the number of rows of each call, and can drop rows."""

    def __init__(self, denoise, levels: Schedule) -> None:
        self.denoise, self.levels, self.calls = denoise, levels, []

    def __call__(self, noisy: torch.Tensor, k: int) -> torch.Tensor:
        t = self.levels.t[k]
        self.calls.append((len(noisy), t.flatten().tolist()))
        return self.denoise(noisy, t[..., None].clamp(min=1e-4))  # Bayes' rule divides by t

    def keep(self, rows: torch.Tensor) -> "Counting":
        return self


def schedule(K: int, m: int = 2, **options) -> Schedule:
    return Schedule.of(noise_levels(K, m, **options))


def run(denoise, noise: torch.Tensor, levels: Schedule, **options) -> Denoised:
    return denoise_block(Counting(denoise, levels), noise, levels, ALL_CORNERS, **options)


def sample(K: int, **options) -> torch.Tensor:
    return run(SOURCE.denoise, NOISE, schedule(K, **options)).values


def distance(values: torch.Tensor) -> float:
    """Total variation between sampled words and the source."""
    shares = torch.stack([(values.sign() == word).all(-1).all(-1).float().mean() for word in SOURCE.words])
    other = 1 - shares.sum()
    return float((shares - SOURCE.probabilities).abs().sum() + other) / 2


@pytest.mark.parametrize("options", [{}, {"grid": "shifted"}, {"stagger": 0.5}, {"stagger": 1.0}])
def test_samples_approach_the_source_as_steps_grow(options: dict) -> None:
    few, some, many = (distance(sample(K, **options)) for K in (2, 8, 96))
    assert few > some > many
    assert many < 0.02


def test_one_step_is_the_estimate_for_every_path() -> None:
    estimate = SOURCE.denoise(NOISE[:50], torch.ones(1, 1, 1))
    for options in ({}, {"stagger": 0.7}, {"stagger": 1.0}, {"grid": "shifted", "shift": 0.5}):
        made = run(SOURCE.denoise, NOISE[:50], schedule(1, **options))
        assert torch.equal(made.values, estimate)


def article(denoise, noise: torch.Tensor, K: int) -> torch.Tensor:
    """The article's sampler, one level for the whole block."""
    A = noise
    for k in range(K, 0, -1):
        ratio = ((k - 1) / K) / (k / K)
        A = ratio * A + (1 - ratio) * denoise(A, torch.tensor(k / K))
    return A


@pytest.mark.parametrize("K", [1, 2, 5, 15])
def test_without_stagger_each_step_is_the_articles_update(K: int) -> None:
    def denoise(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(noisy * 3 + t)

    counting = Counting(denoise, schedule(K))
    made = denoise_block(counting, NOISE[:4], schedule(K), ALL_CORNERS, trace=True)
    torch.testing.assert_close(made.values, article(denoise, NOISE[:4], K), rtol=0, atol=1e-6)
    assert counting.calls == [(4, pytest.approx([k / K] * 2)) for k in range(K, 0, -1)]
    assert made.steps.tolist() == [K] * 4
    for row in range(4):
        assert made.states[row].shape == (K + 1, 2, 3)
        assert torch.equal(made.states[row][0], NOISE[row])
        assert torch.equal(made.states[row][-1], made.values[row])


def test_slots_one_after_the_other_are_the_joint_path_on_each_alone() -> None:
    """With s = 1 and 2·5 steps, slot 0 takes the article's five steps beside pure noise, then slot 1 beside a code."""

    def denoise(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(noisy + noisy.flip(-2) + t)  # each slot hears of the other; leaves [-1, 1]

    noise = NOISE[:6]
    made = run(denoise, noise, schedule(10, stagger=1.0)).values

    def first(slot: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoise(torch.cat([slot, noise[:, 1:]], 1), t)[:, :1]

    slot0 = article(first, noise[:, :1], 5)
    torch.testing.assert_close(made[:, :1], slot0, rtol=0, atol=1e-5)

    def second(slot: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoise(torch.cat([slot0.sign(), slot], 1), t)[:, 1:]

    torch.testing.assert_close(made[:, 1:], article(second, noise[:, 1:], 5), rtol=0, atol=1e-5)


@given(
    K=st.integers(1, 40),
    m=st.integers(1, 6),
    stagger=st.floats(0, 1),
    grid=st.sampled_from(["uniform", "shifted"]),
    shift=st.floats(0.1, 10),
)
@settings(deadline=None, max_examples=200)
def test_levels_descend_in_every_slot_one_no_earlier_than_the_next(K, m, stagger, grid, shift) -> None:
    levels = noise_levels(K, m, stagger=stagger, grid=grid, shift=shift)
    assert levels.shape == (K + 1, m)
    assert (levels[0] == 1).all()
    assert (levels[-1] == 0).all()
    assert (levels[1:] <= levels[:-1]).all()
    assert (levels[:, :-1] <= levels[:, 1:]).all()
    table = Schedule.of(levels)
    assert ((table.ratio >= 0) & (table.ratio <= 1)).all()
    assert len(table.levels) == K + 1


def test_levels_by_hand() -> None:
    assert noise_levels(4, 2).tolist() == [[1, 1], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25], [0, 0]]
    half = noise_levels(6, 3, stagger=0.5)  # a clock of 2, six steps of a third
    expected = [[1, 1, 1], [2, 3, 3], [1, 2.5, 3], [0, 1.5, 3], [0, 0.5, 2], [0, 0, 1], [0, 0, 0]]
    torch.testing.assert_close(half[1:], torch.tensor(expected[1:]).double() / 3)
    shifted = noise_levels(2, 1, grid="shifted", shift=3.0)
    assert shifted.flatten().tolist() == pytest.approx([1, 1.5 / 2, 0])
    assert torch.equal(noise_levels(5, 2, grid="shifted", shift=1.0), noise_levels(5, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0"),
        ({"stagger": 1.5}, r"stagger = 1\.5"),
        ({"stagger": math.nan}, "stagger = nan"),
        ({"grid": "cosine"}, "time_grid = 'cosine'"),
        ({"shift": 0.0}, r"time_shift = 0\.0"),
    ],
)
def test_impossible_levels_are_told(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        noise_levels(**{"num_steps": 3, "m": 2} | options)


def test_guidance_extrapolates_the_estimate_or_its_log_odds() -> None:
    conditional, null = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(1)).unbind()

    def estimate(logits: torch.Tensor) -> torch.Tensor:
        return 2 * torch.sigmoid(logits) - 1

    for omega in (0.0, 1.0, 4.0):
        expected = estimate(null) + omega * (estimate(conditional) - estimate(null))
        torch.testing.assert_close(guide(conditional, null, omega, "prediction"), expected)
        expected = estimate(null + omega * (conditional - null))
        torch.testing.assert_close(guide(conditional, null, omega, "logit"), expected)
    assert (guide(conditional, null, 50.0, "prediction").abs() > 1).any()
    assert (guide(conditional, null, 50.0, "logit").abs() <= 1).all()


def test_guidance_costs_twice() -> None:
    assert [calls_per_step(omega) for omega in (0.0, 0.5, 1.0, 9.0)] == [2, 2, 1, 2]


def committed(threshold: float, K: int = 15, n: int = 200, **options) -> tuple[Denoised, Counting]:
    levels = schedule(K, **options)
    counting = Counting(SOURCE.denoise, levels)
    return denoise_until_committed(counting, NOISE[:n], levels, ALL_CORNERS, threshold, trace=True), counting


@pytest.mark.parametrize("options", [{}, {"stagger": 0.5}])
def test_an_impossible_threshold_changes_nothing(options: dict) -> None:
    made, counting = committed(math.inf, **options)
    whole = run(SOURCE.denoise, NOISE[:200], schedule(15, **options), trace=True)
    assert torch.equal(made.values, whole.values)
    assert made.steps.tolist() == [15] * 200
    assert torch.equal(torch.stack(made.states), torch.stack(whole.states))
    assert [rows for rows, _ in counting.calls] == [200] * 15


@pytest.mark.parametrize("options", [{}, {"stagger": 1.0}])
def test_a_block_ends_at_the_first_stable_and_certain_estimate(options: dict) -> None:
    made, counting = committed(0.9, **options)
    levels = schedule(15, **options)
    for row in range(200):
        estimates = []

        def watched(noisy: torch.Tensor, k: int, estimates: list = estimates) -> torch.Tensor:
            t = levels.t[k]
            estimates.append((SOURCE.denoise(noisy, t[..., None].clamp(min=1e-4))[0], t[0] > 0))
            return estimates[-1][0][None]

        whole = denoise_block(watched, NOISE[row : row + 1], levels, ALL_CORNERS, trace=True)
        steps, seen = 15, []
        for k, (estimate, moving) in enumerate(estimates[:-1]):
            seen.append(torch.where(moving[:, None], estimate, whole.states[0][k]))
            certain = (estimate.abs() > 0.9)[moving].all()
            if k and certain and torch.equal(seen[k].sign(), seen[k - 1].sign()):
                steps = k + 1
                break
        assert made.steps[row] == steps
        assert made.states[row].shape[0] == steps + 1
        assert torch.equal(made.states[row][-1], made.values[row])
        if steps < 15:
            assert torch.equal(made.values[row], seen[-1])
    assert 2 <= made.steps.min() < made.steps.max()
    assert sum(rows for rows, _ in counting.calls) == made.steps.sum()  # a block that ended is not computed any more


def test_commitment_hardly_changes_the_distribution() -> None:
    levels = schedule(64)
    made = denoise_until_committed(Counting(SOURCE.denoise, levels), NOISE, levels, ALL_CORNERS, 0.999)
    assert made.states is None
    assert made.steps.float().mean() < 60
    assert distance(made.values) < 0.02


def test_commit_steps_by_hand() -> None:
    bit = torch.tensor([[-1.0, 1, 1, -1], [1, 1, -1, -1], [-0.5, 1, 1, -1], [0.2, 1, 1, 1]])  # states by bits
    assert commit_steps(bit[:, None]).tolist() == [[3, 0, 2, 3]]
    assert commit_steps(bit[:1, None]).tolist() == [[0, 0, 0, 0]]


@given(st.lists(st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3), min_size=1, max_size=8))
@settings(deadline=None)
def test_after_its_commit_step_a_bit_keeps_its_sign(states: list[list[float]]) -> None:
    found = commit_steps(torch.tensor(states)[:, None])[0].tolist()
    for bit, step in enumerate(found):
        signs = [state[bit] for state in states]
        assert set(signs[step:]) == {signs[-1]}
        assert step == 0 or signs[step - 1] != signs[-1]


@pytest.mark.parametrize("void", ["clamp", "nearest"])
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_a_landed_slot_shows_and_keeps_the_code_of_a_real_token(void: str, threshold: float | None) -> None:
    """Of 8 corners 5 are tokens: a slot that lands on another one is, from then on, the token that it is decoded to."""
    levels = schedule(8, m=3, stagger=1.0)
    real = {tuple(code) for code in encode(torch.arange(5), 3).tolist()}
    shown = []

    def denoise(noisy: torch.Tensor, k: int) -> torch.Tensor:
        clean = levels.t[k, 0] == 0
        shown.extend(noisy[:, clean].flatten(0, 1).tolist())
        return 2 * torch.tanh(5 * noisy)

    denoise.keep = lambda rows: denoise
    noise = torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(1))
    real_codes = RealCodes(5, void)
    if threshold is None:
        made = denoise_block(denoise, noise, levels, real_codes, trace=True)
    else:
        made = denoise_until_committed(denoise, noise, levels, real_codes, threshold, trace=True)
    assert len(shown) > 300
    assert {tuple(code) for code in shown} == real
    assert {tuple(code) for code in made.values.sign().flatten(0, 1).tolist()} == real
    assert all(torch.equal(states[-1], values) for states, values in zip(made.states, made.values, strict=True))


def test_real_codes_change_the_signs_of_void_corners_only() -> None:
    values = torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(2))
    for void in ("clamp", "nearest"):
        found = RealCodes(5, void)(values)
        assert torch.equal(found.abs(), values.abs())
        assert torch.equal(decode(found, 5), decode(values, 5, void))
        untouched = decode(values, 8) < 5
        assert torch.equal(found[untouched], values[untouched])


@pytest.mark.parametrize("void", ["clamp", "nearest"])
def test_a_bit_of_zero_keeps_the_sign_of_its_token(void: str) -> None:
    """Of 8 corners 4 are tokens; the bits that turn a void corner into a token may have no magnitude."""
    values = torch.tensor([[[1.0, -1.0, 0.0], [1.0, 0.0, 0.5], [1.0, 0.3, 0.0], [0.0, 0.0, 0.0]]])
    found = RealCodes(4, void)(values)
    assert torch.equal(decode(found, 8), decode(values, 4, void))  # read without any rule for void corners
