"""What Transformers offers on every model, as far as it holds for this one; the rest is refused with one line.

Without the refusals most of it would go through: with other numbers, or a traceback much later.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from bitlm.errors import ArtifactError, BitLMError, ConfigError
from bitlm.model.config import DTYPES, BitLMConfig, own_fields
from bitlm.model.weights import CONFIG, INDEX, SINGLE, indexed_files, read_json
from bitlm.text import first_line

ATTENTION = ("sdpa", "eager")
_SHARDS = "only training divides a model among devices"
_REPLACES = "it would replace modules whose weights the heads read directly"
# Arguments of from_pretrained that cannot be followed.
REFUSED = {
    "quantization_config": f"{_REPLACES}; dtype=torch.bfloat16 halves the memory",
    "gguf_file": "a model is read from safetensors",
    "use_kernels": _REPLACES,
    "kernel_config": _REPLACES,
    "fusion_config": _REPLACES,
    "tp_plan": _SHARDS,
    "tp_size": _SHARDS,
    "device_mesh": _SHARDS,
    "distributed_config": _SHARDS,
}
# Fields of the configuration that the modules were not built from.
_FREE = {"end_token_id", "pad_token_id", "max_position_embeddings", "initialization", "initializer_range"}
_STRUCTURE = tuple(name for name in own_fields() if name not in _FREE)


def check_attention(implementation: Any) -> None:
    """Raises ConfigError unless attention of this name can take the block-causal mask; None is the default."""
    if implementation is not None and implementation not in ATTENTION:
        raise ConfigError(
            f"attn_implementation = {implementation!r} cannot take the block-causal mask; choose sdpa or eager"
        )


class BitLMPreTrainedModel(PreTrainedModel):
    """A model with a backbone ``model``; loading, saving, casting and the embeddings."""

    config_class = BitLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # Trainer then averages over micro-batches itself
    _supports_sdpa = True
    _no_split_modules = ("Qwen3DecoderLayer",)
    _keep_in_fp32_modules_strict = ("log_unigram",)

    def __init__(self, config: BitLMConfig, **unknown: Any) -> None:
        """Raises ConfigError for arguments of ``from_pretrained`` that neither it nor the configuration knows."""
        if unknown:
            raise ConfigError(f"{next(iter(unknown))} is no argument of from_pretrained and no field of BitLMConfig")
        config.check()
        check_attention(config._attn_implementation)
        super().__init__(config)
        self._built_from = self._structure()

    def _structure(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in _STRUCTURE}

    def check_unchanged(self) -> None:
        """Raises ConfigError if the configuration describes another model than the one that was built from it."""
        for name, value in self._structure().items():
            if value != self._built_from[name]:
                raise ConfigError(
                    f"config.{name} was changed from {self._built_from[name]!r} to {value!r} after the model was "
                    "built: make a new model from the configuration"
                )

    @classmethod
    def from_pretrained(cls, source: str | PathLike, *args, output_loading_info: bool = False, **kwargs):
        """Transformers' own, from safetensors alone and onto one device, but only a complete and exact set of tensors
        is accepted; what does not fit would be drawn at random.

        Raises ArtifactError naming the source and the first tensor that is missing, unknown or of another shape, and
        ConfigError for a configuration or arguments that cannot be followed.
        """
        _check_load_arguments(kwargs)
        device = _one_device(kwargs.pop("device_map", None))
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True}  # mismatches are reported below, by name
        with _without_warnings():
            model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        for name in sorted(info["missing_keys"]):
            raise ArtifactError(f"{source}: tensor {name} is missing; the checkpoint is incomplete or of another model")
        for name in sorted(info["unexpected_keys"]):
            raise ArtifactError(f"{source}: tensor {name} has no place in the model that config.json describes")
        for name, stored, expected in sorted(info["mismatched_keys"]):
            raise ArtifactError(f"{source}: tensor {name} has shape {tuple(stored)}, the model needs {tuple(expected)}")
        if device is not None:
            model.to(device)
        return (model, info) if output_loading_info else model

    @classmethod
    def load(cls, folder: str | PathLike, **kwargs):
        """``from_pretrained`` of a local folder. Raises ArtifactError also where nothing there can be read, and
        ConfigError naming the file where ``config.json`` describes no model of this kind."""
        _check_load_arguments(kwargs)
        path = Path(folder, kwargs.get("subfolder") or "", CONFIG)
        if not path.is_file():
            raise ArtifactError(f"{folder}: no readable model there ({CONFIG} is missing)")
        stored = read_json(path, ArtifactError)
        try:
            BitLMConfig.from_dict(stored)
        except BitLMError as error:
            raise ConfigError(f"{path}: {error}") from error
        if not (path.parent / SINGLE).is_file() and (path.parent / INDEX).is_file():
            indexed_files(path.parent / INDEX, ArtifactError)
        try:
            return cls.from_pretrained(folder, **kwargs | {"local_files_only": True})
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise ArtifactError(f"{folder}: no readable model there ({first_line(error)})") from error

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Transformers' own. Raises ConfigError if the configuration no longer describes the model."""
        self.check_unchanged()
        super().save_pretrained(*args, **kwargs)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError for anything but sdpa and eager."""
        check_attention(attn_implementation)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """The embedding as it is. Raises ConfigError if another number of tokens or rows is asked for."""
        if new_num_tokens not in (None, self.config.vocab_size) or pad_to_multiple_of is not None:
            raise ConfigError(
                f"resize_token_embeddings: the vocabulary of {self.config.vocab_size} tokens is fixed by their codes "
                f"of {self.config.num_bits} bits; make a model with another vocab_size"
            )
        return self.get_input_embeddings()

    def get_input_embeddings(self) -> nn.Embedding | None:
        """None for a model that is fed with codes and needs no embedding for its output either."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Raises ConfigError for a matrix of another shape, and for a model without one."""
        if self.model.embed_tokens is None:
            raise ConfigError("set_input_embeddings: this model is fed with codes and has no embedding")
        expected = tuple(self.model.embed_tokens.weight.shape)
        weight = getattr(value, "weight", None)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != expected:
            raise ConfigError(f"set_input_embeddings: expected an embedding with a weight of shape {expected}")
        self.model.embed_tokens = value

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Raises ConfigError: no head has a module for it that could be replaced."""
        raise ConfigError("set_output_embeddings: the output belongs to the head; change the weights of model.head")

    def prepare_inputs_for_generation(self, *_args: Any, **_kwargs: Any) -> None:
        """PEFT looks for it on every causal language model. Raises ConfigError: generation has a loop of its own."""
        raise ConfigError("prepare_inputs_for_generation: generation has a loop of its own; call generate or stream")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Casting leaves the buffers in float32, as loading in another precision does: rotary frequencies and log u
        lose too much."""
        exact = {name: buffer for name, buffer in self.named_buffers() if buffer.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            cast = self.get_buffer(name)
            if cast.dtype in (torch.float16, torch.bfloat16):
                owner, _, key = name.rpartition(".")
                setattr(self.get_submodule(owner), key, buffer.to(cast.device))
        return self


def _check_load_arguments(given: dict[str, Any]) -> None:
    for name, reason in REFUSED.items():
        if given.get(name):
            raise ConfigError(f"{name} is not supported: {reason}")
    if given.get("use_safetensors") is False:
        raise ConfigError("use_safetensors = False: only safetensors are read, since a pickle could run code")
    check_attention(given.get("attn_implementation"))
    for name in ("dtype", "torch_dtype"):
        dtype = given.get(name)
        if dtype not in (None, "auto", *DTYPES) and str(dtype) not in DTYPES.values():
            raise ConfigError(f"{name} = {dtype!r}: choose auto, {', '.join(DTYPES.values())}")


def _one_device(device_map: Any) -> torch.device | None:
    places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if places == {None}:
        return None
    (place, *others) = places or {"auto"}
    try:
        if not others:
            return torch.device(place)
    except (RuntimeError, TypeError):
        pass
    raise ConfigError(
        f"device_map = {device_map!r}: the model is loaded onto one device; name it, for example device_map='cuda:0'"
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
