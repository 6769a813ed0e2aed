"""Brier-n and BrierLM (CALM, arXiv 2510.27688): how well a model foretells the next n tokens, from samples alone.

For two independent samples x1, x2 of what follows a prompt and the true tokens y, compared on their first n tokens,

    Brier-n = E[1{x1 = y} + 1{x2 = y} - 1{x1 = x2}] = E[2 q(y) - Σ_x q(x)²]

where q is the distribution that is sampled from. It is at most 1, it is greatest for q = p, the distribution of the
text, where it is E[Σ_x p(x)²], and it is below 0 for a model that is often sure and wrong. BrierLM is
100·(Π_n max(Brier-n, 0))^¼ for n = 1..4. It says nothing of a sampler whose two samples are equal by construction.
"""

from typing import Any

import numpy as np

LENGTH = 4
"""Tokens of a sample, so that n = 1..4."""
NAMES = (*(f"brier_{n}" for n in range(1, LENGTH + 1)), "brier_lm")
LEVEL = 0.95


def terms(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1{x1 = y} + 1{x2 = y} - 1{x1 = x2} for each position and n: ids [positions, 4] three times → int64
    [positions, 4]."""
    assert first.shape == second.shape == truth.shape == (len(truth), LENGTH), (first.shape, second.shape, truth.shape)
    return _same_start(first, truth) + _same_start(second, truth) - _same_start(first, second)


def score(
    first: np.ndarray,
    second: np.ndarray,
    truth: np.ndarray,
    sequences: np.ndarray,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """``{"brier_1": {"value", "low", "high"}, …, "brier_lm": {…}, "blocks", "sequences", "interval"}``.

    first, second, truth: ids [positions, 4]. sequences: int [positions], the sequence that each position is of.
    samples, seed: of ``bootstrap``.
    """
    assert len(truth), "no position to score"
    values = terms(first, second, truth)
    resampled = bootstrap(values, sequences, samples, seed)
    low, high = np.percentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    figures = {
        name: {"value": round(float(v), 6), "low": round(float(a), 6), "high": round(float(b), 6)}
        for name, v, a, b in zip(NAMES, _figures(values.mean(axis=0)), low, high, strict=True)
    }
    method = "percentile bootstrap over sequences"
    interval = {"level": LEVEL, "method": method, "samples": samples, "seed": seed}
    return {**figures, "blocks": len(truth), "sequences": len(np.unique(sequences)), "interval": interval}


def bootstrap(values: np.ndarray, sequences: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The figures [samples, figures], in the order of ``NAMES``, of resamples of the sequences; the positions of one
    stay together. ``values`` [positions, 4] are ``terms``, ``sequences`` [positions] say which sequence each is of.

    The same sequences and seed give the same resamples, so that two systems can be compared in pairs.
    """
    _, of_position = np.unique(sequences, return_inverse=True)
    counts_s = np.bincount(of_position)
    sums_sn = np.zeros((len(counts_s), LENGTH))
    np.add.at(sums_sn, of_position, values)
    rng = np.random.default_rng(seed)
    resampled = np.empty((samples, LENGTH))
    for sample in range(samples):
        drawn_s = rng.integers(0, len(counts_s), len(counts_s))
        resampled[sample] = sums_sn[drawn_s].sum(axis=0) / counts_s[drawn_s].sum()
    return _figures(resampled)


def ratio(
    ours: np.ndarray, theirs: np.ndarray, sequences: np.ndarray, samples: int = 1000, seed: int = 0
) -> dict[str, float | None]:
    """``{"value", "low", "high"}``: BrierLM of one system divided by that of another, from their ``terms``
    [positions, 4] at the same positions, with a bootstrap paired by position. None where the divisor is 0."""
    value = _figures(np.stack([ours.mean(axis=0), theirs.mean(axis=0)]))[:, -1]
    both = np.stack([bootstrap(values, sequences, samples, seed)[:, -1] for values in (ours, theirs)])
    found: dict[str, float | None] = {"value": _quotient(value[0], value[1]), "low": None, "high": None}
    if (both[1] > 0).all():
        low, high = np.percentile(both[0] / both[1], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        found |= {"low": round(float(low), 6), "high": round(float(high), 6)}
    return found


def _quotient(a: float, b: float) -> float | None:
    return round(float(a / b), 6) if b > 0 else None


def _same_start(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether the first n tokens are equal, n = 1..4: 0 or 1, int64 [positions, 4]."""
    return np.logical_and.accumulate(a == b, axis=1).astype(np.int64)


def _figures(brier: np.ndarray) -> np.ndarray:
    """Brier-n [..., 4] → the figures [..., 5] in the order of ``NAMES``."""
    brier_lm = 100 * np.maximum(brier, 0).prod(axis=-1, keepdims=True) ** (1 / LENGTH)
    return np.concatenate([brier, brier_lm], axis=-1)
