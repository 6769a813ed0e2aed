"""What the benchmark of adaptive commitment counts as a change."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import commitment


def test_changes_are_counted_by_text_and_by_place():
    assert commitment.changed([[1, 2], [3]], [[1, 2], [3]]) == (0, 0)
    texts, tokens = commitment.changed([[1, 2, 3], [4], []], [[1, 9], [4], []])
    assert texts == pytest.approx(1 / 3)
    assert tokens == pytest.approx(2 / 4)  # one other token, one missing
    assert commitment.changed([[]], [[]]) == (0, 0)
