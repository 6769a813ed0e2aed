"""The validation figure: nats per token (the chain of a head that tells token probabilities and its bound beside it,
the bound of a bit head, the LM head's exact cross-entropy)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitlm.batch import Batch
from bitlm.config import TrainConfig
from bitlm.diffusion.bound import Bound, combine, validation_nats
from bitlm.diffusion.chain import chain_nats
from bitlm.model.model import BitLMForCausalLM
from bitlm.train import ranks
from bitlm.train.batches import Batches

Measure = Callable[[BitLMForCausalLM, Batch, int], tuple[Tensor, Tensor]]
"""Of one batch under a seed: nats and tokens per sequence and slot, both [b, m]."""

SEED = 0  # the same noise at every validation and in every run, so that the figures can be compared


def validate(model: BitLMForCausalLM, batches: Batches, config: TrainConfig) -> dict[str, Any]:
    """Over ``validation_batches · batch_size`` sequences spread over the validation split, divided among the ranks.

    Every rank must call it, and each gets the same figures. ``validation_standard_error`` is None for one sequence;
    figures per slot are left out if one slot of the blocks has no token with loss.
    """
    indices = spread(batches.validation_count, config.validation_batches * config.batch_size)
    bound = _gathered(model, batches, indices, config, validation_nats)
    kind = "bound" if model.config.head == "diffusion" else "exact"
    if model.config.has_token_posterior:
        joint, bound, kind = bound, _gathered(model, batches, indices, config, chain_nats), "chain"
    figures: dict[str, Any] = {
        "validation_nats_per_token": bound.mean,
        "validation_kind": kind,
        "validation_standard_error": bound.stderr if math.isfinite(bound.stderr) else None,
    }
    if kind == "chain":
        figures["validation_bound_nats_per_token"] = joint.mean
    if len(bound.slots) > 1 and not any(math.isnan(slot.mean) for slot in bound.slots):
        figures["validation_nats_per_slot"] = [slot.mean for slot in bound.slots]
    if batches.bytes_per_token is not None:
        figures["bits_per_byte"] = bound.bits_per_byte(batches.bytes_per_token)
    return figures


def spread(available: int, count: int) -> list[int]:
    """``count`` indices at equal distances below ``available``, or all of them if there are fewer. Neighbours in a
    corpus are alike, so its first sequences would not represent the rest."""
    count = min(count, available)
    return [i * available // count for i in range(count)]


def _gathered(
    model: BitLMForCausalLM, batches: Batches, indices: list[int], config: TrainConfig, measure: Measure
) -> Bound:
    """``measure`` of the sequences with these indices, divided among the ranks; the same on every rank."""
    rank, world = ranks.rank(), ranks.world()
    own = indices[rank::world]
    # Every rank must take part in every forward pass of a sharded model, so ranks with one sequence less repeat one.
    repeated = indices[:1] * (-(-len(indices) // world) - len(own))
    results = _nats(model, batches, own + repeated, config, measure)[: len(own)]
    # In the order of the indices, so that sums are rounded alike on any number of ranks.
    gathered = sorted(entry for of_rank in ranks.gather(list(zip(own, results, strict=True))) for entry in of_rank)
    nats = torch.tensor([sums for _, (sums, _) in gathered], dtype=torch.float64)  # [sequences, m]
    tokens = torch.tensor([counts for _, (_, counts) in gathered])  # [sequences, m]
    return combine(nats, tokens)


def _nats(
    model: BitLMForCausalLM, batches: Batches, indices: list[int], config: TrainConfig, measure: Measure
) -> list[tuple[list[float], list[int]]]:
    """Per sequence: nats of the tokens that carry loss, summed for each slot of the blocks, and their number."""
    device = next(model.parameters()).device
    size = config.execution.micro_batch_size or config.batch_size // ranks.world()
    results = []
    for start in range(0, len(indices), size):
        batch = batches.validation(indices[start : start + size]).to(device)
        nats, tokens = measure(model, batch, SEED)
        results += zip(nats.tolist(), tokens.tolist(), strict=True)
    model.reshard()  # a forward pass without a backward pass leaves weights gathered
    return results
