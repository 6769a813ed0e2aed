"""What the benchmark of token commitment counts as a change, and that its samplers are there."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import commitment

from bitlm.generation import Sampling


def test_changes_are_counted_by_text_and_by_place():
    assert commitment.changed([[1, 2], [3]], [[1, 2], [3]]) == (0, 0)
    texts, tokens = commitment.changed([[1, 2, 3], [4], []], [[1, 9], [4], []])
    assert texts == pytest.approx(1 / 3)
    assert tokens == pytest.approx(2 / 4)  # one other token, one missing
    assert commitment.changed([[]], [[]]) == (0, 0)


@pytest.mark.parametrize("m", [1, 4, 6])
def test_every_line_is_a_sampler_of_its_own(m):
    names = [Sampling(max_new_tokens=1, **options).name for options in commitment.samplers(m)]
    assert len(set(names)) == len(names)
    assert names[0] == "commit left, 1 slot per call, greedy"
