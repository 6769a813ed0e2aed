"""Start from existing weights: the backbone of a finished model in a fresh model of either head.

A source is a Qwen3 checkpoint in Transformers' format (a local folder or ``hub:OWNER/NAME[@revision]``) or one of our
own pretrain artifacts. Embedding, layers and final norm are taken over and must fit exactly. The head stays fresh, but
for the LM head's own output matrix, which belongs to the embedding as much as to the head. A backbone that is fed with
codes takes over the map of codes, and the embedding that only its output uses, where the source has them; a source that
was fed with codes is no start for a backbone that is fed with embedding rows. The start block is taken
over where it has as many vectors; that of an LM head (one vector) is repeated for each slot of a block, where the
rotary positions tell the copies apart; otherwise, as with Qwen3, which has none, it stays fresh.

Only safetensors are read: a pickle could run code.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import Qwen3Config

from bitlm.errors import ConfigError, SourceError
from bitlm.model.config import BitLMConfig
from bitlm.model.model import BitLMForCausalLM
from bitlm.model.weights import CONFIG, read_json, weight_files

# What changes a backbone's function without changing any shape.
SETTINGS = ("rms_norm_eps", "rope_parameters", "hidden_act", "use_sliding_window")
EMBEDDING, CODE_INPUT = "model.embed_tokens.weight", "code_input."
QWEN3_OUTPUT, OUR_OUTPUT = "lm_head.weight", "head.output.weight"


@torch.no_grad()
def take_backbone(model: BitLMForCausalLM, folder: str | Path, source: str) -> None:
    """Copy the backbone in ``folder`` into ``model``, in the model's precision. ``source`` names it in messages.

    Raises ConfigError naming the tensor, both shapes and the source where the two do not fit, and the setting where
    the same shapes would compute something else. Nothing is copied then.
    """
    folder = Path(folder)
    stored, theirs = _stored(folder, source), _config(folder, source)
    _check_settings(model.config, theirs, source)
    wanted = {name: p for name, p in model.named_parameters() if name.startswith("model.")}
    known = {*wanted, EMBEDDING}  # which a model that is fed with codes may do without
    for name in sorted(name for name in stored if name.startswith("model.") and name not in known):
        raise ConfigError(f"init_from: tensor {name} of {source} has no place in this model: its backbone is smaller")
    if model.config.input == "codes" and EMBEDDING not in stored:
        wanted.pop(EMBEDDING, None)
    wanted |= _code_input(model, stored, source) | _output(model, theirs, source)
    for name, parameter in wanted.items():
        if name not in stored:
            raise ConfigError(f"init_from: {source} has no tensor {name}, which this model's backbone needs")
        _check_shape(name, stored[name][1], tuple(parameter.shape), source)
    for name, parameter in (wanted | _learned_vectors(model, stored)).items():
        parameter.copy_(_read(stored[name][0], name))  # one vector is repeated for all slots


def _stored(folder: Path, source: str) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Tensor name → (file, shape)."""
    found = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                names = file.keys()
                found |= {name: (path, tuple(file.get_slice(name).get_shape())) for name in names}
        except (SafetensorError, OSError) as error:
            raise SourceError(f"init_from: {path.name} of {source} cannot be read ({error})") from error
    return found


def _config(folder: Path, source: str) -> BitLMConfig | Qwen3Config:
    model_type = read_json(folder / CONFIG, SourceError).get("model_type")
    for known in (Qwen3Config, BitLMConfig):
        if model_type == known.model_type:
            try:
                return known.from_pretrained(folder)
            except (ConfigError, ValueError, TypeError) as error:  # of BitLMConfig, of Qwen3Config
                reason = " ".join(str(error).split())
                raise SourceError(f"init_from: {CONFIG} of {source} describes no model ({reason})") from error
    raise ConfigError(f"init_from: {source} is a {model_type} model; expected qwen3 or {BitLMConfig.model_type}")


def _check_settings(config: BitLMConfig, theirs: BitLMConfig | Qwen3Config, source: str) -> None:
    ours, theirs = config.backbone(), theirs.backbone() if isinstance(theirs, BitLMConfig) else theirs
    for key in SETTINGS:
        if getattr(ours, key) != getattr(theirs, key):
            raise ConfigError(
                f"init_from: {source} has {key} = {getattr(theirs, key)}, this model {getattr(ours, key)}: "
                "its weights would compute something else"
            )


def _check_shape(name: str, stored: tuple[int, ...], needed: tuple[int, ...], source: str) -> None:
    if stored != needed:
        raise ConfigError(f"init_from: tensor {name} of {source} has shape {stored}, this model needs {needed}")


def _code_input(model: BitLMForCausalLM, stored: dict[str, Any], source: str) -> dict[str, Tensor]:
    """The map of codes, where the source has one."""
    if not any(name.startswith(CODE_INPUT) for name in stored):
        return {}
    if model.code_input is None:
        raise ConfigError(
            f"init_from: the backbone of {source} is fed with codes, this model's with embedding rows: "
            "set model.input=codes"
        )
    return {name: p for name, p in model.named_parameters() if name.startswith(CODE_INPUT)}


def _output(model: BitLMForCausalLM, theirs: BitLMConfig | Qwen3Config, source: str) -> dict[str, Tensor]:
    """The LM head's own output matrix, under its name in the source, where that is a model with one."""
    theirs_is_lm = isinstance(theirs, Qwen3Config) or theirs.head == "lm"
    if model.config.head != "lm" or not theirs_is_lm or theirs.tie_word_embeddings:
        return {}
    name = QWEN3_OUTPUT if isinstance(theirs, Qwen3Config) else OUR_OUTPUT
    if model.head.output is None:
        raise ConfigError(
            f"init_from: tensor {name} of {source} has no place in this model, whose embedding serves as the output: "
            "set model.tie_embeddings=false"
        )
    return {name: model.head.output.weight}


def _learned_vectors(model: BitLMForCausalLM, stored: dict[str, Any]) -> dict[str, Tensor]:
    """The start block and the slot embedding where they fit: as many vectors, or one start vector for every slot."""
    found = {}
    for name, parameter in model.named_parameters():
        if name in ("start_block", "slot_embedding") and name in stored:
            vectors = stored[name][1][0]
            if vectors == len(parameter) or (vectors == 1 and name == "start_block"):
                found[name] = parameter
    return found


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
