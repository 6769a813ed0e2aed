"""Muon: momentum whose matrices are orthogonalized before they are applied (Keller Jordan 2024,
https://kellerjordan.github.io/posts/muon/).

``torch.optim.Muon`` does the same on whole matrices, but cannot write its update into matrices that FSDP2 has sharded:
rows of a rank's shard do not tell the singular vectors. Here each rank gathers one matrix at a time, orthogonalizes it,
and keeps its own rows.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


def orthogonalized(matrix: Tensor) -> Tensor:
    """[rows, columns] → bfloat16 of the same shape with the same singular vectors and singular values near 1
    (0.7 to 1.2), by five quintic Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    if len(matrix) > matrix.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=EPS)  # singular values are at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if len(matrix) > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Parameters are matrices, whole or sharded by FSDP2. Nesterov momentum, decoupled weight decay."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter.grad)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        update = _rows_of(parameter, orthogonalized(_whole(parameter.grad.lerp(momentum, MOMENTUM))))
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        own.mul_(1 - rate * decay)
        rows, columns = parameter.shape
        own.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def _whole(matrix: Tensor) -> Tensor:
    return matrix.full_tensor() if isinstance(matrix, DTensor) else matrix


def _rows_of(parameter: Tensor, whole: Tensor) -> Tensor:
    """The part of a whole matrix that belongs to this rank's shard of ``parameter``."""
    if not isinstance(parameter, DTensor):
        return whole
    everywhere = DTensor.from_local(whole, parameter.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=parameter.placements).to_local()
