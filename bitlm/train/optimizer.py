"""AdamW, or Muon for the matrices inside the layers and AdamW for the rest, with weight decay on matrices only."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from bitlm.config import TrainConfig
from bitlm.train.muon import Muon

# The maps of codes, and the heads' last ones: their columns or rows stand for bits or tokens, as those of an embedding.
OUTER = (
    "code_input.hidden",
    "head.network.input",
    "head.network.estimate",
    "head.readout.output",
    "head.context_log_odds",
    "head.output",
)
RATE_RATIO = "rate_ratio"  # key of a parameter group: its learning rate divided by AdamW's


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers, each with its own parameters, behind the interface of one: all groups, one state."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:
        for part in self._parts:
            part.step()


def decay_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict]:
    """Matrices (embeddings included) decay; vectors, such as norm weights and biases, do not."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The parameters that Muon is for: matrices of linear maps between hidden vectors. Embeddings, learned vectors and
    the heads' first and last maps are left to AdamW."""
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in OUTER and module.weight.requires_grad
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """``config.optimizer``: AdamW for all, or Muon for the hidden matrices and AdamW for the rest."""
    betas = config.beta1, config.beta2
    if config.optimizer == "adamw":
        return torch.optim.AdamW(_groups(model.parameters(), config), lr=config.learning_rate, betas=betas, fused=True)
    hidden = hidden_matrices(model)
    of_muon = set(hidden)
    rest = _groups((p for p in model.parameters() if p not in of_muon), config)
    group = {"params": hidden, RATE_RATIO: config.muon_learning_rate / config.learning_rate}
    muon = Muon([group], lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    adamw = torch.optim.AdamW(rest, lr=config.learning_rate, betas=betas, fused=True)
    return CombinedOptimizer([muon, adamw])


def _groups(parameters: Iterable[Tensor], config: TrainConfig) -> list[dict]:
    return [group | {RATE_RATIO: 1.0} for group in decay_groups(parameters, config.weight_decay)]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """``rate`` is that of AdamW; Muon's keeps its ratio to it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATE_RATIO]


def materialize(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter its optimizer state, which otherwise appears at the first step only, for a checkpoint to be
    loaded into. A step along zero gradients at rate zero does it, and moves nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    set_learning_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
