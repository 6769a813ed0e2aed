"""The backbone's view of a sequence [start block | tokens]: who sees whom, at which position each vector stands;
and how a small backbone starts."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import Qwen3Model
from transformers import initialization as init

RESIDUAL = ("o_proj", "down_proj")  # the maps that write into the residual stream


def block_causal_mask(length: int, m: int, device: torch.device | str = "cpu") -> Tensor:
    """[length, length] bool: position i sees position j iff ⌊j/m⌋ ≤ ⌊i/m⌋."""
    block = torch.arange(length, device=device) // m
    return block[None, :] <= block[:, None]


@lru_cache(maxsize=8)
def _cached_mask(length: int, m: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the same tensor serves training
        return block_causal_mask(length, m, device)


def training_mask(length: int, m: int, visible: Tensor | None, device: torch.device) -> Tensor | None:
    """Mask for one pass over whole sequences, [b or 1, 1, length, length], True = sees.

    ``visible`` [b, length] is False on padding. None means causal, for which the attention kernels need no mask.
    """
    if visible is None:
        return None if m == 1 else _cached_mask(length, m, device)[None, None]
    return _cached_mask(length, m, device)[None, None] & visible[:, None, None, :]


def positions(visible: Tensor, m: int) -> Tensor:
    """Positions [b, length] for left-padded rows whose first m entries are the start block.

    Whole blocks of padding are not counted, so the first block with a token always stands right behind the start block.
    """
    length = visible.shape[1]
    padding_blocks = (length - visible.sum(dim=1, keepdim=True)) // m  # [b, 1]
    index = torch.arange(length, device=visible.device)[None]
    shifted = (index - padding_blocks * m).clamp(min=0)
    return torch.where(index < m, index, shifted)


def initialize_scaled(backbone: Qwen3Model) -> None:
    """Embeddings with standard deviation 1/√D, so that the output logits of tied embeddings start with variance 1;
    matrices with 1/√(3·inputs), PyTorch's own; those that write into the residual stream divided by √(2·layers), as in
    GPT-2. Qwen3's 0.02 is meant for a thousand and more columns: a small model spends its first hundreds of steps on
    leaving it."""
    init.normal_(backbone.embed_tokens.weight, std=backbone.config.hidden_size**-0.5)
    for layer in backbone.layers:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                depth = 2 * len(backbone.layers) if name.endswith(RESIDUAL) else 1
                init.normal_(module.weight, std=(3 * module.in_features * depth) ** -0.5)
