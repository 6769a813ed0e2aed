"""What the model may be called with: each mistake is refused by name before anything is computed."""

from typing import Any

import torch
from torch import Tensor

from bitlm.config import DiffusionConfig, losses
from bitlm.errors import ConfigError
from bitlm.model.config import BitLMConfig

# Arguments of other models' forward, and why this one does without.
UNSUPPORTED = {
    "inputs_embeds": "the ids themselves are what is learned; give input_ids",
    "position_ids": "positions follow from attention_mask",
    "past_key_values": "forward is one pass over whole sequences; generate and stream keep the cache",
    "use_cache": "forward is one pass over whole sequences; generate and stream keep the cache",
    "output_hidden_states": "compute_context returns the final hidden states",
    "output_attentions": "attention weights are not kept",
    "return_dict": "the result is a BitLMOutput, whose first entry is the loss",
    "num_items_in_batch": "loss_sum and loss_count combine micro-batches",
    "logits_to_keep": "the result holds losses; token_logits gives the logits of an LM head",
}


def check_arguments(given: dict[str, Any]) -> None:
    """Raises ConfigError if one of forward's further arguments asks for something."""
    for name, value in given.items():
        asks = value is not True if name == "return_dict" else value is not False
        if asks and value is not None:
            reason = UNSUPPORTED.get(
                name, "it takes input_ids, attention_mask, labels, noise, loss_tokens and diffusion"
            )
            raise ConfigError(f"forward: {name} is not supported: {reason}")


def check_losses(config: BitLMConfig, diffusion: DiffusionConfig) -> None:
    """Raises ConfigError for losses that the model's diffusion head cannot compute."""
    try:
        losses.check(diffusion, config.diffusion_head, config.mask, config.block_size, losses.Place())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_ids(config: BitLMConfig, input_ids: Any) -> None:
    """Raises ConfigError if these are not ids [b, L] in whole blocks. On a GPU their range is not looked at, which
    would wait for the device."""
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"input_ids: {_described(input_ids)}; expected a tensor of token ids, [rows, tokens] int64")
    L, m = input_ids.shape[1], config.block_size
    if L == 0 or L % m:
        raise ConfigError(
            f"a sequence of {L} tokens is not a whole number of blocks of {m}: pad it on the left, and set "
            "attention_mask to 0 there"
        )
    if input_ids.is_cpu and ((input_ids < 0) | (input_ids >= config.vocab_size)).any():
        wrong = input_ids[(input_ids < 0) | (input_ids >= config.vocab_size)][0]
        raise ConfigError(f"input_ids: token id {wrong} is outside the vocabulary (0 to {config.vocab_size - 1})")


def check_like_ids(name: str, given: Any, input_ids: Tensor) -> None:
    """Raises ConfigError if this is not a tensor of the shape of the ids, on their device."""
    if not isinstance(given, Tensor) or given.shape != input_ids.shape or given.device != input_ids.device:
        raise ConfigError(
            f"{name}: {_described(given)}; expected a tensor of the shape of input_ids, {list(input_ids.shape)}, "
            f"on {input_ids.device}"
        )


def visible_tokens(attention_mask: Any, input_ids: Tensor) -> Tensor:
    """The mask [b, L] as bool. Padding is on the left or on the right of a row's tokens, never between them.

    Raises ConfigError for anything else.
    """
    check_like_ids("attention_mask", attention_mask, input_ids)
    visible = attention_mask.bool()
    if (attention_mask != visible).any():
        raise ConfigError("attention_mask: it holds other values than 0, on padding, and 1")
    edges = torch.nn.functional.pad(visible.long(), (1, 0)).diff(dim=1)
    broken = (edges > 0).sum(dim=1) > 1
    if broken.any():
        raise ConfigError(
            f"attention_mask: row {int(broken.nonzero()[0])} has padding between its tokens; pad on the left or right"
        )
    return visible


def check_labels(labels: Any, input_ids: Tensor) -> None:
    """Raises ConfigError if a label is neither -100 nor the id at its place: the targets are the ids."""
    check_like_ids("labels", labels, input_ids)
    wrong = ((labels != -100) & (labels != input_ids)).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ConfigError(
            f"labels: {labels[row, place]} in row {row} at place {place}, where input_ids has {input_ids[row, place]}; "
            "a label is the id at its own place, or -100 where no loss is taken"
        )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
