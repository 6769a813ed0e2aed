"""The validation figure: nats per token (the bound of the diffusion head, the LM head's exact cross-entropy)."""

import math
from typing import Any

import torch

from bitlm.config import TrainConfig
from bitlm.diffusion.bound import combine, validation_nats
from bitlm.model.model import BitLMForCausalLM
from bitlm.train import ranks
from bitlm.train.batches import Batches

SEED = 0  # always the same noise, so that figures of one run, and of two runs, can be compared


def validate(model: BitLMForCausalLM, batches: Batches, config: TrainConfig) -> dict[str, Any]:
    """Over ``validation_batches · batch_size`` sequences spread over the validation split, shared out among the ranks.

    Every rank must call it, and each gets the same figures. ``validation_standard_error`` is None for one sequence.
    """
    chosen = spread(batches.validation_count, config.validation_batches * config.batch_size)
    rank, world = ranks.rank(), ranks.world()
    own = chosen[rank::world]
    # A sharded model needs every rank at every forward pass: short ranks repeat a sequence, and forget the result.
    fed = own + chosen[:1] * (-(-len(chosen) // world) - len(own))
    results = _nats(model, batches, fed, config)[: len(own)]
    everywhere = sorted(each for part in ranks.gather(list(zip(own, results, strict=True))) for each in part)
    nats = torch.tensor([totals for _, (totals, _) in everywhere], dtype=torch.float64)
    tokens = torch.tensor([counts for _, (_, counts) in everywhere])
    found = combine(nats, tokens)
    figures: dict[str, Any] = {
        "validation_nats_per_token": found.mean,
        "validation_standard_error": found.stderr if math.isfinite(found.stderr) else None,
    }
    if len(found.slots) > 1 and tokens.sum(0).all():
        figures["validation_nats_per_slot"] = [slot.mean for slot in found.slots]
    if batches.bytes_per_token is not None:
        figures["bits_per_byte"] = found.bits_per_byte(batches.bytes_per_token)
    return figures


def spread(available: int, count: int) -> list[int]:
    """``count`` indices at equal distances below ``available``, or all where there are no more: neighbours in a corpus
    are alike, so its first sequences would not speak for the rest."""
    count = min(count, available)
    return [i * available // count for i in range(count)]


def _nats(
    model: BitLMForCausalLM, batches: Batches, indices: list[int], config: TrainConfig
) -> list[tuple[list[float], list[int]]]:
    """Per sequence: nats of the tokens that carry loss, summed for each slot of the blocks, and their number."""
    device = next(model.parameters()).device
    size = config.execution.micro_batch_size or config.batch_size // ranks.world()
    results = []
    for start in range(0, len(indices), size):
        batch = batches.validation(indices[start : start + size]).to(device)
        nats, tokens = validation_nats(model, batch, SEED)
        results += zip(nats.tolist(), tokens.tolist(), strict=True)
    model.reshard()  # a forward pass without a backward pass leaves weights gathered
    return results
