"""The model on its device: whole on one rank, sharded by FSDP2 over several, with float32 master weights either way."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from bitlm.model.config import BitLMConfig
from bitlm.model.model import BitLMForCausalLM
from bitlm.train import ranks


def place(make_model: Callable[[], BitLMForCausalLM], device: torch.device, precision: str) -> BitLMForCausalLM:
    """Make the model on rank 0 only, and give every rank its shard of exactly those weights."""
    if ranks.world() == 1:
        return make_model().float().to(device)
    whole = make_model().float() if ranks.rank() == 0 else None
    config: BitLMConfig = ranks.first(lambda: whole.config)
    model = skeleton(config)
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in [*model.model.layers, *getattr(model.head, "layers", ())]:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole.state_dict() if whole is not None else {}, options=options)
    original = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in model.named_buffers():  # what no state dict holds, such as rotary frequencies
        if name in original:
            buffer.copy_(original[name])
        dist.broadcast(buffer, src=0)
    return model


def skeleton(config: BitLMConfig) -> BitLMForCausalLM:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return BitLMForCausalLM(config).float()


def whole_weights(model: BitLMForCausalLM) -> dict[str, Tensor]:
    """Name → full tensor on the CPU, on rank 0; empty on the others. Every rank must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    return weights if ranks.rank() == 0 else {}


def reshard(model: BitLMForCausalLM) -> None:
    """Free what a forward pass without a backward pass leaves gathered."""
    if isinstance(model, FSDPModule):
        model.reshard()
