"""The article's sampler on posteriors known in closed form, and against step-by-step loops."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Mixture

from bitlm.codes import decode, encode
from bitlm.diffusion.descent import Descent, RealCodes
from bitlm.diffusion.guidance import guide
from bitlm.diffusion.posterior import BitPosterior, Posterior
from bitlm.diffusion.sampler import Sampled, commit_steps
from bitlm.diffusion.schedule import Schedule, noise_levels

# The slots of these words depend on each other: no product over slots has this distribution.
SOURCE = Mixture(
    words=torch.tensor([[[1, 1, 1], [1, 1, 1]], [[1, -1, 1], [-1, -1, 1]], [[-1, -1, -1], [1, -1, -1]]]).float(),
    probabilities=torch.tensor([0.5, 0.3, 0.2]),
)
NOISE = torch.randn(20_000, 2, 3, generator=torch.Generator().manual_seed(0))
LogOdds = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Bits:
    """A denoiser of independent bits from log-odds(A_t, t [.., 1]) and, for the null branch, others. Of its calls it
    notes the level of each slot, whether the null branch was asked, and A_t."""

    conditional: LogOdds
    null: LogOdds = lambda noisy, t: torch.zeros_like(noisy)
    calls: list[tuple[list[float], bool]] = field(default_factory=list)
    seen: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, noisy: torch.Tensor, t: torch.Tensor, guided: bool, *_: torch.Tensor) -> Posterior:
        self.calls.append((t[0].tolist(), guided))
        self.seen.append(noisy)
        branches = [self.conditional, self.null] if guided else [self.conditional]
        return BitPosterior(torch.cat([branch(noisy, t[..., None]) for branch in branches]), 1 << noisy.shape[-1])


def of_estimate(estimate: LogOdds) -> LogOdds:
    """Log-odds from Â_0."""
    return lambda noisy, t: 2 * torch.atanh(estimate(noisy, t).double().clamp(-1 + 1e-15, 1 - 1e-15)).float()


def of_source(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return SOURCE.denoise(noisy, t.clamp(min=1e-4))


def descent(K: int, m: int = 2, void: str = "clamp", V: int = 8, **options) -> Descent:
    """``options`` are those of the levels, of the interval, or of ``Descent``."""
    grid = {name: options.pop(name) for name in ("stagger", "grid", "shift") if name in options}
    interval = options.pop("interval", None)
    schedule = Schedule.of(noise_levels(K, m, **grid), interval=interval)
    return Descent(schedule, RealCodes(V, void), **options)


def words_of(sampled: Sampled) -> torch.Tensor:
    return encode(sampled.ids, 3)


def distance(sampled: Sampled) -> float:
    """Total variation between sampled words and the source."""
    shares = torch.stack([(words_of(sampled) == word).all(-1).all(-1).float().mean() for word in SOURCE.words])
    other = 1 - shares.sum()
    return float((shares - SOURCE.probabilities).abs().sum() + other) / 2


@pytest.mark.parametrize(
    "options", [{}, {"grid": "shifted"}, {"stagger": 0.5}, {"stagger": 1.0}, {"solver": "dpmpp_2m"}]
)
def test_samples_approach_the_source_as_steps_grow(options: dict) -> None:
    few, some, many = (distance(descent(K, **options)(Bits(of_estimate(of_source)), NOISE)) for K in (2, 8, 96))
    assert few > some > many
    assert many < 0.02


def test_one_step_is_the_estimate_for_every_path() -> None:
    estimate = SOURCE.denoise(NOISE[:50], torch.ones(1, 1, 1))
    for options in ({}, {"stagger": 0.7}, {"stagger": 1.0}, {"grid": "shifted", "shift": 0.5}, {"solver": "dpmpp_2m"}):
        made = descent(1, **options)(Bits(of_estimate(of_source)), NOISE[:50])
        assert torch.equal(made.ids, decode(estimate, 8))


def article(denoise: LogOdds, noise: torch.Tensor, K: int) -> torch.Tensor:
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

    bits = Bits(lambda noisy, t: 2 * (noisy * 3 + t))
    made = descent(K)(bits, NOISE[:4], trace=True)
    for row in range(4):
        assert made.states[row].shape == (K + 1, 2, 3)
        assert torch.equal(made.states[row][0], NOISE[row])
    ends = torch.stack([states[-1] for states in made.states])
    torch.testing.assert_close(ends, article(denoise, NOISE[:4], K), rtol=0, atol=1e-6)
    assert torch.equal(made.ids, decode(ends, 8))
    assert bits.calls == [(pytest.approx([k / K] * 2), False) for k in range(K, 0, -1)]
    assert made.calls.tolist() == [K] * 4


def test_slots_one_after_the_other_are_the_joint_path_on_each_alone() -> None:
    """With s = 1 and 2·5 steps, slot 0 takes the article's five steps beside pure noise, then slot 1 beside a code."""

    def denoise(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(noisy + noisy.flip(-2) + t)  # each slot hears of the other; guided, it leaves [-1, 1]

    noise = NOISE[:6]
    bits = Bits(lambda noisy, t: 2 * (noisy + noisy.flip(-2) + t))
    made = descent(10, stagger=1.0, interval=(0, 1), guidance_scale=3.0)(bits, noise, trace=True)
    ends = torch.stack([states[-1] for states in made.states])

    def first(slot: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoise(torch.cat([slot, noise[:, 1:]], 1), t)[:, :1]

    slot0 = article(first, noise[:, :1], 5)
    torch.testing.assert_close(ends[:, :1], slot0, rtol=0, atol=1e-5)

    def second(slot: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoise(torch.cat([slot0.sign(), slot], 1), t)[:, 1:]

    torch.testing.assert_close(ends[:, 1:], article(second, noise[:, 1:], 5), rtol=0, atol=1e-5)


# A Gaussian source, for which all is known: A_0 ~ N(0, S²) gives Â_0 = (1-t)·S²·A_t/((1-t)²S² + t²), and the exact path
# from A_1 keeps A_t/√((1-t)²S² + t²).
SPREAD = 0.6


def gaussian(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (1 - t) * SPREAD**2 * noisy / ((1 - t) ** 2 * SPREAD**2 + t**2)


@dataclass
class Guided:
    """A denoiser whose prediction-guided estimate is any function of A_t, also one outside [-1, 1]: its conditional
    estimate is a thousandth of it, in float64."""

    estimate: LogOdds

    def __call__(self, noisy: torch.Tensor, t: torch.Tensor, guided: bool, *_: torch.Tensor) -> Posterior:
        small = 2 * torch.atanh(self.estimate(noisy, t[..., None]) / 1000)
        return BitPosterior(torch.cat([small, torch.zeros_like(small)]), 1 << noisy.shape[-1])


def error(K: int, solver: str, stagger: float = 0.0) -> float:
    """Of the value before the last step, against the exact path, for paths that all end at t = 1/10."""
    m = 2
    levels = noise_levels(K, m, stagger=stagger).clone()
    levels[1:-1] = 0.1 + 0.9 * levels[1:-1]  # every slot rests at 0.1 until the last step
    table = Schedule.of(levels, interval=(0.0, 1.0))
    exact = {name: getattr(table, name).double() for name in ("ratio", "extrapolation")}
    sampler = Descent(replace(table, t=levels[:-1, None], **exact), RealCodes(8), 1000.0, "prediction", solver)
    noise = NOISE[:200].double()
    made = sampler(Guided(gaussian), noise, trace=True)
    before_last = torch.stack([states[-2] for states in made.states])
    # The first step lands from t = 1, where Â_0 = 0, exactly on t_1·A_1: the exact path starts from there.
    first = levels[1:].amax(0) if stagger == 0 else torch.stack([column[column < 1][0] for column in levels.T])
    spread_first, spread_end = (((1 - t) ** 2 * SPREAD**2 + t**2).sqrt() for t in (first, levels[-2]))
    expected = (first * spread_end / spread_first)[:, None] * noise
    return float((before_last - expected).abs().max())


@pytest.mark.parametrize("stagger", [0.0, 0.5])
def test_the_second_order_solver_is_better_and_of_second_order(stagger: float) -> None:
    for K in (8, 16, 32):
        assert error(K, "dpmpp_2m", stagger) < 0.5 * error(K, "euler", stagger)
    for solver, order in (("euler", 1), ("dpmpp_2m", 2)):
        assert math.log2(error(64, solver, stagger) / error(128, solver, stagger)) == pytest.approx(order, abs=0.2)


def test_six_steps_of_second_order_on_the_shifted_grid_match_fifteen_of_first() -> None:
    second, first, article = (
        distance(descent(K, **options)(Bits(of_estimate(of_source)), NOISE))
        for K, options in ((6, {"grid": "shifted", "solver": "dpmpp_2m"}), (6, {"grid": "shifted"}), (15, {}))
    )
    assert second < first
    assert second < 1.1 * article


def test_guidance_extrapolates_the_estimate_its_log_odds_or_log_probabilities() -> None:
    both = torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(1))
    posterior, (conditional, null) = BitPosterior(both, 8), both.chunk(2)

    def estimate(logits: torch.Tensor) -> torch.Tensor:
        return 2 * torch.sigmoid(logits) - 1

    for omega in (0.0, 1.0, 4.0):
        expected = estimate(null) + omega * (estimate(conditional) - estimate(null))
        torch.testing.assert_close(guide(posterior, omega, "prediction"), expected)
        expected = estimate(null + omega * (conditional - null))
        torch.testing.assert_close(guide(posterior, omega, "logit"), expected)
    assert (guide(posterior, 50.0, "prediction").abs() > 1).any()
    assert (guide(posterior, 50.0, "logit").abs() <= 1).all()
    table = SOURCE.posterior(torch.cat([NOISE[:5], NOISE[5:10]]), torch.tensor([[0.7, 0.7]]))
    scores = table.log_p[5:] + 1.5 * (table.log_p[:5] - table.log_p[5:])  # log p is -∞ for tokens that never are
    expected = scores.nan_to_num(nan=-math.inf).softmax(-1) @ encode(torch.arange(8), 3).double()
    kept = type(table)(table.log_p.clamp(min=-1e4), 3)
    torch.testing.assert_close(guide(kept, 1.5, "token").double(), expected, rtol=0, atol=1e-6)


FORMS = ("prediction", "logit", "token")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stagger", [0.0, 0.5, 1.0])
def test_an_interval_of_everything_is_plain_guidance_and_one_of_nothing_is_none(form: str, stagger: float) -> None:
    def run(**options) -> tuple[Bits, Sampled]:
        bits = Bits(lambda noisy, t: noisy * 3 + t, lambda noisy, t: noisy.flip(-1))
        sampler = descent(7, stagger=stagger, guidance_scale=2.5, guidance_form=form, **options)
        return bits, sampler(bits, NOISE[:40], trace=True)

    every, guided = run(interval=(0.0, 1.0))
    assert guided.calls.tolist() == [14] * 40
    assert all(asked for _, asked in every.calls)
    A = NOISE[:40]  # the plain loop: all slots guided at every step
    levels = noise_levels(7, 2, stagger=stagger).float()
    for k in range(7):
        t, following = levels[k][:, None], levels[k + 1][:, None]
        shown = torch.where(t == 0, A.sign(), A)
        branches = torch.cat([shown * 3 + t, shown.flip(-1)])
        ratio = torch.where(t > 0, following / t, 1.0)
        A = ratio * A + (1 - ratio) * guide(BitPosterior(branches, 8), 2.5, form)
    torch.testing.assert_close(torch.stack([states[-1] for states in guided.states]), A, rtol=0, atol=1e-5)
    none, unguided = run(interval=(0.0, 0.0))
    plain, without = run()
    assert unguided.calls.tolist() == without.calls.tolist() == [7] * 40
    assert none.calls == plain.calls
    assert not any(asked for _, asked in plain.calls)
    assert torch.equal(torch.stack(unguided.states), torch.stack(without.states))
    assert not torch.equal(guided.ids, without.ids)


@pytest.mark.parametrize("form", FORMS)
def test_inside_an_interval_only_its_slots_are_guided(form: str) -> None:
    bits = Bits(lambda noisy, t: noisy * 3 + t, lambda noisy, t: noisy.flip(-1))
    sampler = descent(6, 3, stagger=0.5, guidance_scale=2.5, guidance_form=form, interval=(0.6, 0.9))
    noise = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(5))
    made = sampler(bits, noise, trace=True)
    assert [asked for _, asked in bits.calls] == [False, True, True, False, True, False]
    assert made.calls.tolist() == [9] * 5
    t = torch.tensor([2 / 3, 1, 1])[:, None]  # step 1: slot 0 is guided, slot 1 moves too and is not
    before, after = (torch.stack([states[k] for states in made.states]) for k in (1, 2))
    conditional, null = before * 3 + t, before.flip(-1)
    guided = guide(BitPosterior(torch.cat([conditional, null]), 8), 2.5, form)
    ratio = torch.tensor([1 / 2, 5 / 6, 1])[:, None]
    estimate = torch.cat([guided[:, :1], torch.tanh(conditional / 2)[:, 1:]], 1)
    torch.testing.assert_close(after, ratio * before + (1 - ratio) * estimate, rtol=0, atol=1e-6)


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
def test_a_landed_slot_shows_and_keeps_the_code_of_a_real_token(void: str) -> None:
    """Of 8 corners 5 are tokens: a slot that lands on another one is, from then on, the token that it is decoded to."""
    sampler = descent(8, 3, void, V=5, stagger=1.0)
    real = {tuple(code) for code in encode(torch.arange(5), 3).tolist()}
    bits = Bits(lambda noisy, t: 10 * noisy)
    made = sampler(bits, torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(1)), trace=True)
    calls = zip(bits.calls, bits.seen, strict=True)
    shown = torch.cat([noisy[:, torch.tensor(t) == 0].flatten(0, 1) for (t, _), noisy in calls])
    assert len(shown) > 300
    assert {tuple(code) for code in shown.tolist()} == real
    ends = torch.stack([states[-1] for states in made.states]).sign()
    assert {tuple(code) for code in ends.flatten(0, 1).tolist()} == real
    assert torch.equal(ends, encode(made.ids, 3))


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
