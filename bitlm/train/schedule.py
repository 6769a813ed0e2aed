"""The learning rate of each step: a linear warm-up, then half a cosine."""

import math

from bitlm.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 1..steps: linear from 0 to ``learning_rate`` at ``warmup_steps``, then half a cosine down to
    ``final_lr_ratio · learning_rate``, reached exactly at the last step."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    ratio = config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * ratio
