import math

import pytest

from bitlm.config import PretrainConfig
from bitlm.train.schedule import learning_rate

CONFIG = PretrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(1, 0.2), (5, 1.0), (10, 2.0), (35, 2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)), (60, 1.1), (110, 0.2)],
)
def test_learning_rate_by_hand(step: int, rate: float) -> None:
    assert learning_rate(step, CONFIG) == pytest.approx(rate)


def test_learning_rate_without_warmup_and_with_nothing_but_warmup() -> None:
    assert learning_rate(1, PretrainConfig(steps=1, warmup_steps=0, learning_rate=1.0)) == pytest.approx(0.1)
    assert learning_rate(3, PretrainConfig(steps=3, warmup_steps=6, learning_rate=1.0)) == 0.5
