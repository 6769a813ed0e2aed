"""AdamW with decay on matrices only, and a linear warm-up followed by a cosine."""

import math

import torch
from torch import nn

from bitlm.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 1..steps: linear from 0 to ``learning_rate`` at ``warmup_steps``, then half a cosine down to
    ``final_lr_ratio · learning_rate``, reached exactly at the last step."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    ratio = config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * ratio


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices (embeddings included) decay; vectors, such as norm weights and biases, do not."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    groups = decay_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def materialize(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter its optimizer state, which otherwise appears at the first step only: a step of zero
    gradients at rate zero moves nothing. For loading a checkpoint, which then replaces that state."""
    rates = [group["lr"] for group in optimizer.param_groups]
    set_learning_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
