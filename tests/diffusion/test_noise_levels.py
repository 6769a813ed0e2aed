"""The table of noise levels, and what follows from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlm.diffusion.schedule import Schedule, noise_levels
from bitlm.errors import ConfigError

levels_of_any_kind = st.builds(
    noise_levels,
    num_steps=st.integers(1, 40),
    m=st.integers(1, 6),
    stagger=st.floats(0, 1),
    grid=st.sampled_from(["uniform", "shifted"]),
    shift=st.floats(0.1, 10),
)


@given(levels=levels_of_any_kind)
@settings(deadline=None, max_examples=200)
def test_levels_descend_in_every_slot_one_no_earlier_than_the_next(levels: torch.Tensor) -> None:
    assert (levels[0] == 1).all()
    assert (levels[-1] == 0).all()
    assert (levels[1:] <= levels[:-1]).all()
    assert (levels[:, :-1] <= levels[:, 1:]).all()
    table = Schedule.of(levels)
    assert ((table.ratio >= 0) & (table.ratio <= 1)).all()
    assert table.num_steps == len(levels) - 1 == len(table.t)


def test_levels_by_hand() -> None:
    assert noise_levels(4, 2).tolist() == [[1, 1], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25], [0, 0]]
    half = noise_levels(6, 3, stagger=0.5)  # a clock of 2, six steps of a third
    expected = [[1, 1, 1], [2, 3, 3], [1, 2.5, 3], [0, 1.5, 3], [0, 0.5, 2], [0, 0, 1], [0, 0, 0]]
    torch.testing.assert_close(half[1:], torch.tensor(expected[1:]).double() / 3)
    shifted = noise_levels(2, 1, grid="shifted", shift=3.0)
    assert shifted.flatten().tolist() == pytest.approx([1, 1.5 / 2, 0])
    assert torch.equal(noise_levels(5, 2, grid="shifted", shift=1.0), noise_levels(5, 2))


@given(levels=levels_of_any_kind)
@settings(deadline=None, max_examples=100)
def test_extrapolation_is_by_the_steps_of_lambda_and_nothing_where_one_is_infinite(levels: torch.Tensor) -> None:
    found = Schedule.of(levels).extrapolation
    assert found.isfinite().all()

    def step(k: int, slot: int) -> float:
        """λ_next - λ, NaN where one is not finite."""
        a, b = (float(levels[j, slot]) for j in (k, k + 1))
        return math.log((1 - b) / b) - math.log((1 - a) / a) if 0 < a < 1 and 0 < b < 1 else math.nan

    for k in range(len(levels) - 1):
        for slot in range(levels.shape[1]):
            h, before = step(k, slot), step(k - 1, slot) if k else math.nan
            expected = 0.0 if math.isnan(h) or math.isnan(before) else h / (2 * before)
            assert float(found[k, slot, 0]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_an_interval_guides_the_moving_slots_inside_it() -> None:
    levels = noise_levels(8, 2, stagger=1.0)  # slot 0: 1, ¾, ½, ¼, then slot 1
    table = Schedule.of(levels, interval=(0.5, 0.75))
    assert table.guided[..., 0].tolist() == [
        [t in (0.75, 0.5) and k < 4, t2 in (0.75, 0.5) and k >= 4] for k, (t, t2) in enumerate(levels[:-1].tolist())
    ]
    assert [table.guides(k) for k in range(8)] == ["none", "all", "all", "none"] * 2
    assert table.calls == 8 + 4
    joint = Schedule.of(noise_levels(6, 3, stagger=0.5), interval=(0.6, 0.9))  # see the table by hand above
    assert [joint.guides(k) for k in range(6)] == ["none", "some", "some", "none", "some", "none"]
    assert Schedule.of(levels).calls == 8
    assert Schedule.of(levels, interval=(0.0, 1.0)).calls == 16


def test_schedules_of_the_same_levels_are_equal() -> None:
    one, same = (Schedule.of(noise_levels(3, 2), interval=(0, 1)) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != Schedule.of(noise_levels(3, 2), interval=(0, 0.5)) != Schedule.of(noise_levels(4, 2))


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
