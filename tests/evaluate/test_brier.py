import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bitlm.evaluate import brier

blocks = arrays(np.int64, (6, 4), elements=st.integers(0, 1))


def by_hand(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> list[list[int]]:
    found = []
    for x1, x2, y in zip(first.tolist(), second.tolist(), truth.tolist(), strict=True):
        found.append([(x1[:n] == y[:n]) + (x2[:n] == y[:n]) - (x1[:n] == x2[:n]) for n in range(1, 5)])
    return found


@given(blocks, blocks, blocks)
def test_terms_equal_counting_by_hand(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> None:
    assert brier.terms(first, second, truth).tolist() == by_hand(first, second, truth)


def test_figures_are_the_means_and_their_geometric_mean() -> None:
    """Eight positions with known matches: of n = 1..4 tokens, both, one or none of the samples is right."""
    truth = np.zeros((8, 4), dtype=np.int64)
    right, wrong = np.zeros(4, dtype=np.int64), np.array([0, 0, 5, 0])
    first = np.stack([right] * 4 + [wrong] * 4)
    second = np.stack([right] * 3 + [wrong] + [np.full(4, 7)] * 3 + [np.full(4, 8)])
    scores = brier.score(first, second, truth, np.arange(8), samples=10)
    # n ≤ 2: four pairs that agree and are right, four of which one is; n > 2: three agree, one pair has one right.
    values = [scores[f"brier_{n}"]["value"] for n in range(1, 5)]
    assert values == [1, 1, 0.5, 0.5]
    assert scores["brier_lm"]["value"] == pytest.approx(100 * 0.25**0.25, abs=1e-6)
    assert (scores["blocks"], scores["sequences"]) == (8, 8)


def test_a_model_that_is_sure_and_wrong_is_below_zero_and_has_no_brier_lm() -> None:
    truth = np.zeros((4, 4), dtype=np.int64)
    sampled = np.tile(np.array([0, 0, 0, 1]), (4, 1))
    scores = brier.score(sampled, sampled, truth, np.arange(4), samples=10)
    assert [scores[name]["value"] for name in brier.NAMES] == [1, 1, 1, -1, 0]


def test_intervals_equal_a_plain_loop() -> None:
    """Sequences of different lengths, their positions scattered."""
    rng = np.random.default_rng(3)
    first, second, truth = rng.integers(0, 2, size=(3, 23, 4))
    sequences = rng.integers(10, 17, 23)
    names, values = sorted(set(sequences.tolist())), by_hand(first, second, truth)
    draws, resampled = np.random.default_rng(5), []
    for _ in range(40):
        rows = [i for s in draws.integers(0, len(names), len(names)) for i in range(23) if sequences[i] == names[s]]
        means = [sum(values[i][n] for i in rows) / len(rows) for n in range(4)]
        product = 1.0
        for mean in means:
            product *= max(mean, 0)
        resampled.append([*means, 100 * product**0.25])
    scores = brier.score(first, second, truth, sequences, samples=40, seed=5)
    for k, name in enumerate(brier.NAMES):
        ordered = sorted(row[k] for row in resampled)
        for end, share in (("low", 0.025), ("high", 0.975)):
            place = share * 39
            below = int(place)
            expected = ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])
            assert scores[name][end] == pytest.approx(expected, abs=1e-6)
    assert scores["interval"]["samples"] == 40


def test_positions_of_one_sequence_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(0)
    first, second, truth = rng.integers(0, 2, size=(3, 50, 4))
    once = brier.score(first, second, truth, np.arange(50))
    copies = brier.score(*(np.repeat(x, 9, axis=0) for x in (first, second, truth)), np.repeat(np.arange(50), 9))
    assert [copies[name] for name in brier.NAMES] == [once[name] for name in brier.NAMES]


def test_intervals_follow_the_standard_error() -> None:
    rng = np.random.default_rng(1)
    values = brier.terms(*rng.integers(0, 2, size=(3, 4000, 4)))
    found = np.percentile(brier.bootstrap(values, np.arange(4000), 1000, seed=0)[:, :4], [2.5, 97.5], axis=0)
    np.testing.assert_allclose(found[1] - found[0], 2 * 1.96 * values.std(axis=0) / 4000**0.5, rtol=0.12)


def test_a_ratio_is_paired_by_position() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, size=(90, 4))
    right = [np.where(rng.random((90, 4)) < share, truth, 5) for share in (0.95, 0.9, 0.9, 0.85)]
    ours, theirs = brier.terms(right[0], right[1], truth), brier.terms(right[2], right[3], truth)
    sequences = np.arange(90) // 3
    draws, ratios = np.random.default_rng(4), []
    for _ in range(50):
        rows = [3 * s + i for s in draws.integers(0, 30, 30) for i in range(3)]
        ratios.append(np.prod(ours[rows].mean(axis=0) / theirs[rows].mean(axis=0)) ** 0.25)
    found = brier.ratio(ours, theirs, sequences, samples=50, seed=4)
    expected = [np.prod(ours.mean(axis=0) / theirs.mean(axis=0)) ** 0.25, *np.percentile(ratios, [2.5, 97.5])]
    assert [found[name] for name in ("value", "low", "high")] == pytest.approx(expected, abs=1e-6)
    assert set(brier.ratio(ours, ours, sequences, samples=9).values()) == {1}


def test_there_is_no_ratio_to_nothing() -> None:
    truth = np.zeros((6, 4), dtype=np.int64)
    right, wrong = brier.terms(truth, truth, truth), brier.terms(truth + 1, truth + 2, truth)
    assert brier.ratio(right, wrong, np.arange(6), samples=9) == {"value": None, "low": None, "high": None}
    rare = np.where(np.arange(6)[:, None] == 0, right, wrong)  # resamples without the first sequence are 0
    assert brier.ratio(right, rare, np.arange(6), samples=99) == {"value": 6, "low": None, "high": None}


BLOCKS = np.array(list(itertools.product(range(3), repeat=4)))  # every block over three tokens
COUNT = 100_000


def independent(p: list[float]) -> np.ndarray:
    """Probability of each of ``BLOCKS`` whose tokens are drawn independently from p."""
    return np.array(p)[BLOCKS].prod(axis=1)


def chained(stay: float) -> np.ndarray:
    """… whose tokens equal the one before with probability ``stay`` and are else one of the two others."""
    same = BLOCKS[:, 1:] == BLOCKS[:, :-1]
    return np.where(same, stay, (1 - stay) / 2).prod(axis=1) / 3


def of_start(joint: np.ndarray, n: int) -> np.ndarray:
    """The distribution of the first n tokens."""
    return joint.reshape([3] * n + [-1]).sum(axis=-1).ravel()


def closed_form(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Brier-1 to Brier-4 of a model q on text of p, from all blocks: 2 Σ p q - Σ q²."""
    starts = [(of_start(p, n), of_start(q, n)) for n in range(1, 5)]
    return np.array([2 * (a * b).sum() - (b * b).sum() for a, b in starts])


def measured(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over sampled blocks, and their standard errors."""
    rng = np.random.default_rng(7)
    truth = BLOCKS[rng.choice(len(p), size=COUNT, p=p)]
    first, second = (BLOCKS[rng.choice(len(q), size=COUNT, p=q)] for _ in range(2))
    values = brier.terms(first, second, truth)
    scores = brier.score(first, second, truth, np.arange(COUNT), samples=1)
    np.testing.assert_allclose([scores[name]["value"] for name in brier.NAMES[:4]], values.mean(axis=0), atol=1e-6)
    return values.mean(axis=0), values.std(axis=0) / COUNT**0.5


TRUE = [0.6, 0.3, 0.1]
SOURCES = {
    "independent": (independent(TRUE), independent([0.3, 0.3, 0.4])),
    "chained": (chained(0.8), independent([1 / 3] * 3)),  # a model that knows each token but not that they depend
}


@pytest.mark.parametrize("source", SOURCES)
def test_samples_of_a_known_source_give_its_closed_form(source: str) -> None:
    p, damaged = SOURCES[source]
    for q in (p, damaged):
        mean, error = measured(p, q)
        assert (np.abs(mean - closed_form(p, q)) < 4 * error).all()
    better, worse = measured(p, p), measured(p, damaged)
    ahead = (better[0] - worse[0]) / np.hypot(better[1], worse[1])
    assert (ahead[1:] > 4).all()
    assert source == "chained" or ahead[0] > 4


def test_the_closed_forms_are_those_of_the_formula() -> None:
    """For the true source the sum of squares: of n independent tokens its n-th power, of a chain the squares of its
    steps multiplied."""
    p, q = SOURCES["independent"]
    true, model = np.array(TRUE), np.array([0.3, 0.3, 0.4])
    powers = np.arange(1, 5)
    np.testing.assert_allclose(closed_form(p, p), (true @ true) ** powers)
    np.testing.assert_allclose(closed_form(p, q), 2 * (true @ model) ** powers - (model @ model) ** powers)
    chain, steps = SOURCES["chained"][0], 0.8**2 + 2 * 0.1**2
    np.testing.assert_allclose(closed_form(chain, chain), steps ** (powers - 1) / 3)


@given(arrays(np.float64, 81, elements=st.floats(0.01, 1)), arrays(np.float64, 81, elements=st.floats(0.01, 1)))
def test_no_model_beats_the_source_itself(p: np.ndarray, q: np.ndarray) -> None:
    p, q = p / p.sum(), q / q.sum()
    assert (closed_form(p, p) >= closed_form(p, q) - 1e-12).all()
