"""Small models whose every parameter is random: a fresh head answers 0 whatever it sees, which would hide faults."""

import torch
from torch import Tensor

from bitlm.config import HeadConfig
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.state import BlockState

SMALL = {
    "vocab_size": 50,
    "embedding_rows": 128,
    "num_bits": 6,
    "block_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "end_token_id": 48,
    "pad_token_id": 48,
}


HEAD = {"num_layers": 4, "head_dim": 16}


def small_model(seed: int = 0, **changes) -> BitLMForCausalLM:
    """``changes`` are fields of the model's configuration, or of the head's but for its ``head_dim``."""
    head = {name: changes.pop(name) for name in HeadConfig.model_fields.keys() & changes.keys() - {"head_dim"}}
    if changes.get("head") == "lm":
        changes["block_size"] = 1
    torch.manual_seed(seed)
    model = BitLMForCausalLM(BitLMConfig(**SMALL | changes, diffusion_head=HEAD | head)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def prepare(model: BitLMForCausalLM, context: Tensor) -> BlockState:
    """C [n, m, D] → what the head computes of it once."""
    return model.head.prepare(context)


def prepare_null(model: BitLMForCausalLM, n: int) -> BlockState:
    """The same for n blocks under the null condition."""
    return prepare(model, model.head.null_context[None]).repeat(n)


def prepare_sampling(model: BitLMForCausalLM, context: Tensor, guided: bool) -> BlockState:
    constants = model.sampling_constants(torch.ones(1, 1, model.config.block_size), guided)
    return model.head.prepare_sampling(context, constants)


def log_odds(model: BitLMForCausalLM, noisy: Tensor, t: Tensor, block: BlockState) -> Tensor:
    return model.head(noisy, t, model.head_constants(), block).log_odds()


def token_nll(model: BitLMForCausalLM, noisy: Tensor, t: Tensor, block: BlockState, targets: Tensor) -> Tensor:
    return -model.head(noisy, t, model.head_constants(), block).log_prob(targets)
