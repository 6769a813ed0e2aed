"""The model on its device, sharded by FSDP2 over the ranks, one rank included.

Precision is one policy for any number of ranks: the weights that the optimizer sees are float32, and so is the sum of
gradients over ranks. With bfloat16 each layer computes with a bfloat16 copy of its weights, which is also what the
ranks gather. What the model itself does in float32 (norms, softmax, cross-entropy, log-odds) stays float32.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from bitlm.model.config import BitLMConfig
from bitlm.model.model import BitLMForCausalLM
from bitlm.train import ranks


def sharded_model(
    config: BitLMConfig, device: torch.device, precision: Literal["float32", "bfloat16"]
) -> BitLMForCausalLM:
    """The model with memory for this rank's shard of the weights, which hold nothing yet.

    Weights, and the buffers that are saved with them, come from ``set_weights`` or from a checkpoint. Other buffers,
    such as rotary frequencies, follow from the configuration and are computed here.
    """
    model = skeleton(config)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    mesh = init_device_mesh(device.type, (ranks.world(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device=device)
    saved = model.state_dict().keys()
    for name, _ in model.named_buffers():
        if name not in saved:
            model._init_weights(model.get_submodule(name.rpartition(".")[0]))
    return model


def set_weights(model: BitLMForCausalLM, make_model: Callable[[], BitLMForCausalLM]) -> None:
    """Fill ``model`` with the weights of ``make_model()``, which is called on rank 0 only. Every rank must call it."""
    weights: dict[str, Tensor] = {}
    ranks.first(lambda: weights.update(make_model().float().state_dict()))
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)


def skeleton(config: BitLMConfig) -> BitLMForCausalLM:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return BitLMForCausalLM(config).float()


def whole_weights(model: BitLMForCausalLM) -> dict[str, Tensor]:
    """Name → full tensor on the CPU, on rank 0; empty on the others. Every rank must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    return weights if ranks.rank() == 0 else {}
