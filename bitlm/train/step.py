"""One optimizer step over a global batch that is divided into ranks and micro-batches.

The loss is the mean over all loss tokens of the GLOBAL batch: every micro-batch adds the gradient of its sum, and the
sum over ranks is divided once by the global count. Ranks and micro-batches therefore change only float rounding.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from bitlm.batch import Batch
from bitlm.config import TrainConfig
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.errors import BitLMError
from bitlm.model.model import BitLMForCausalLM
from bitlm.train import ranks


@dataclass(frozen=True)
class StepResult:
    """Of the global batch: mean loss per token, gradient norm before clipping, number of tokens without padding."""

    loss: float
    grad_norm: float
    tokens: int


def train_step(
    model: BitLMForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, step: int, config: TrainConfig
) -> StepResult:
    """``batch`` is this rank's share. Raises BitLMError naming the step if loss or gradient is not finite."""
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, tokens that carry it, tokens fed
    for part in batch.split(config.execution.micro_batch_size):
        part = part.to(device)
        noise = _noise(model, part, config)
        output = model(
            part.input_ids,
            part.attention_mask,
            noise=noise,
            loss_tokens=part.loss_tokens,
            diffusion=config.diffusion,
        )
        output.loss_sum.backward()
        of_part = output.loss_sum.detach(), output.loss_count, torch.tensor(part.tokens(), device=device)
        sums += torch.stack([value.double() for value in of_part])
    total, count, tokens = ranks.sum_(sums).tolist()
    assert count > 0, f"step {step}: no token of the batch carries loss"
    loss = total / count
    # FSDP averages gradients over ranks; what is wanted is the gradient of the mean over the tokens of all ranks.
    norm = _clip_gradients(model, ranks.world() / count, config.grad_clip) if math.isfinite(loss) else math.nan
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


def _clip_gradients(model: nn.Module, scale: float, max_norm: float) -> float:
    """Scale gradients, then clip their global norm to ``max_norm``; returns the scaled norm before clipping."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = scale * float(torch.nn.utils.get_total_norm(gradients).full_tensor())
    factor = scale * min(1.0, max_norm / norm) if norm > 0 else scale
    for gradient in gradients:
        gradient.to_local().mul_(factor)
    return norm
