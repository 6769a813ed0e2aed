"""One optimizer step over a global batch that is spread over ranks and micro-batches.

The loss is the mean over all loss tokens of the GLOBAL batch: every micro-batch adds the gradient of its sum, and the
sum over ranks is divided once by the global count. Ranks and micro-batches therefore change only float rounding.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from bitlm.batch import Batch
from bitlm.config import TrainConfig
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.errors import BitLMError
from bitlm.model.model import BitLMForCausalLM
from bitlm.train import ranks


@dataclass(frozen=True)
class StepResult:
    """Of the global batch: mean loss, gradient norm before clipping, tokens fed."""

    loss: float
    grad_norm: float
    tokens: int


def precision_context(device: torch.device, config: TrainConfig) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")


def train_step(
    model: BitLMForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, step: int, config: TrainConfig
) -> StepResult:
    """``batch`` is this rank's share. Raises BitLMError naming the step where loss or gradient is not finite."""
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, tokens that carry it, tokens fed
    for part in batch.split(config.execution.micro_batch_size):
        part = part.to(device)
        noise = _noise(model, part, config)
        with precision_context(device, config):
            output = model(
                part.input_ids,
                part.attention_mask,
                noise=noise,
                loss_tokens=part.loss_tokens,
                diffusion=config.diffusion,
            )
        output.loss_sum.backward()
        found = output.loss_sum.detach(), output.loss_count, torch.tensor(part.tokens(), device=device)
        sums += torch.stack([value.double() for value in found])
    total, count, tokens = ranks.sum_(sums).tolist()
    assert count > 0, f"step {step}: no token of the batch carries loss"
    loss = total / count
    norm = _scale_and_clip(model, ranks.world() / count, config.grad_clip) if math.isfinite(loss) else math.nan
    if not math.isfinite(norm):
        raise BitLMError(
            f"training diverged at step {step}: loss {loss}, gradient norm {norm}; "
            "lower learning_rate, or raise warmup_steps or lower grad_clip"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm, int(tokens))


def _noise(model: BitLMForCausalLM, part: Batch, config: TrainConfig) -> Noise | None:
    if model.config.head == "lm":
        return None
    m = model.config.block_size
    shape = BlockShape(part.input_ids.shape[1] // m, m, model.config.num_bits)
    return block_noise(NoiseKeys(config.seed, part.indices, part.epochs), shape, config.diffusion)


def _scale_and_clip(model: nn.Module, scale: float, limit: float) -> float:
    """Multiply gradients by ``scale``, then clip their global norm to ``limit``; returns the norm before clipping.

    The number of ranks belongs into ``scale``: sharded gradients are means over ranks, ours is a sum.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = scale * float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    factor = scale * min(1.0, limit / norm) if norm > 0 else scale
    for gradient in gradients:
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor)
    return norm
