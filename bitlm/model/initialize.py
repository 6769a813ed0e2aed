"""How an untrained model starts."""

import math

from torch import nn
from transformers import Qwen3Model
from transformers import initialization as init

from bitlm.model.code_input import CodeInput
from bitlm.model.codebook import last_vector
from bitlm.model.head import DiffusionHead

SILU_SQUARE = 0.3558
RESIDUAL = ("o_proj", "down_proj")  # the maps that write into the residual stream


def initialize_scaled(backbone: Qwen3Model) -> None:
    """Embeddings with standard deviation 1/√D, so that the output logits of tied embeddings start with variance 1;
    matrices with 1/√(3·inputs), PyTorch's own; those that write into the residual stream divided by √(2·layers), as in
    GPT-2. Qwen3's 0.02 is meant for a thousand and more columns: a small model spends its first hundreds of steps on
    leaving it."""
    if backbone.embed_tokens is not None:
        init.normal_(backbone.embed_tokens.weight, std=backbone.config.hidden_size**-0.5)
    for layer in backbone.layers:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                depth = 2 * len(backbone.layers) if name.endswith(RESIDUAL) else 1
                init.normal_(module.weight, std=(3 * module.in_features * depth) ** -0.5)


def initialize_codes(code_input: CodeInput, std: float) -> None:
    """Inputs of the backbone with the standard deviation that rows of an embedding would have: the hidden values before
    SiLU have variance 1, and E[SiLU(z)²] = 0.356 for standard normal z."""
    for linear, of_output in ((code_input.hidden, 1.0), (code_input.output, std / math.sqrt(SILU_SQUARE))):
        init.normal_(linear.weight, std=of_output * linear.in_features**-0.5)
        init.zeros_(linear.bias)


def initialize_head(head: DiffusionHead, std: float) -> None:
    """As BitDance: Xavier-uniform matrices, zero modulation and output. What the direct context path and the codebook
    read from C starts at zero, except for the codebook's query: the last vector before the block, which knows most."""
    network, readout = head.network, head.readout
    codebook = readout.codebook
    parts = (network, readout.output, head.context_log_odds, codebook)
    for linear in (module for part in parts if part is not None for module in part.modules()):
        if isinstance(linear, nn.Linear):
            init.xavier_uniform_(linear.weight)
    for linear in (*network.modulations, network.final_modulation, readout.output):
        init.zeros_(linear.weight)
    if head.context_log_odds is not None:
        init.zeros_(head.context_log_odds.weight)
    if codebook is not None:
        init.copy_(codebook.query.weight, last_vector(*head.null_context.shape))
        init.constant_(codebook.log_unigram, -math.log(codebook.vocab_size))
        if codebook.coupling is not None:
            init.zeros_(codebook.coupling.weight)
    for vectors in (head.null_context, network.slot_embedding, network.time[0].weight, network.time[2].weight):
        init.normal_(vectors, std=std)
