"""What a user may choose when text is generated, and the check of what is asked for."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from bitlm.codes import Void
from bitlm.config import EvaluateConfig
from bitlm.diffusion.sampler import GuidanceForm, TimeGrid, calls_per_step, noise_levels
from bitlm.errors import ConfigError
from bitlm.generation.protocol import GenerativeConfig

# Options of other models' generation, and what to do instead.
INSTEAD = {
    "input_ids": "give prompts, a list of token ids for each",
    "inputs": "give prompts, a list of token ids for each",
    "inputs_embeds": "give prompts, a list of token ids for each",
    "attention_mask": "a prompt is given without padding",
    "max_length": "max_new_tokens counts the new tokens alone",
    "do_sample": "the LM head samples at a temperature above 0, the diffusion head by its noise",
    "num_return_sequences": "repeat the prompt, with an example id for each",
    "eos_token_id": "the model's end_token_id ends a text",
    "generation_config": "give sampling, a Sampling",
    "streamer": "stream yields each block",
}
_KINDS = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    float | None: (Real | None, "a number or None"),
    bool: (bool, "True or False"),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of generation; ``num_steps`` to ``commit_threshold`` concern the diffusion head alone.

    max_new_tokens: tokens per prompt at most.
    num_steps: K, denoising steps per block.
    guidance_scale: ω; 1 is no guidance and costs K head calls per block, any other value 2K.
    guidance_form: what ω is applied to, as in ``bitlm.diffusion.sampler.guide``.
    time_grid, time_shift, stagger: the noise levels, as in ``bitlm.diffusion.sampler.noise_levels``.
    void: what becomes of a void corner, as in ``bitlm.codes.decode``.
    commit_threshold: a block ends early once all its bits are stable and surer than this (|Â_0|); None: never.
    temperature: LM head only; 0 takes the likeliest token.
    seed: of all randomness, together with a prompt's example id and the number of the block.
    trace: keep the value of every bit at every step.
    compile: the head's steps through torch.compile and, on a GPU, as one CUDA graph per block. It costs up to minutes
        at first use; floating-point results may then differ in the last places.

    Raises ConfigError for a value out of its range.
    """

    max_new_tokens: int
    num_steps: int = 15
    guidance_scale: float = 9.0
    guidance_form: GuidanceForm = "prediction"
    time_grid: TimeGrid = "uniform"
    time_shift: float = 3.0
    stagger: float = 0.0
    void: Void = "clamp"
    commit_threshold: float | None = None
    temperature: float = 0.0
    seed: int = 0
    trace: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, field in self.__dataclass_fields__.items():
            value, (kind, expected) = getattr(self, name), _KINDS.get(field.type, (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and kind in (Integral, Real)):
                raise ConfigError(f"{name} = {value!r}: expected {expected}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens = {self.max_new_tokens}: at least 1 is needed")
        noise_levels(self.num_steps, 1, stagger=self.stagger, grid=self.time_grid, shift=self.time_shift)
        for name, symbol in (("guidance_scale", "ω"), ("temperature", "it")):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} = {value}: {symbol} is a number of 0 or more")
        if self.guidance_form not in ("prediction", "logit"):
            raise ConfigError(f"guidance_form = {self.guidance_form!r} is unknown; choose prediction or logit")
        if self.void not in ("clamp", "nearest"):
            raise ConfigError(f"void = {self.void!r} is unknown; choose clamp or nearest")
        if self.commit_threshold is not None and not self.commit_threshold > 0:
            raise ConfigError(f"commit_threshold = {self.commit_threshold}: it is above 0, or None for never")

    @classmethod
    def of(cls, settings: EvaluateConfig, max_new_tokens: int) -> "Sampling":
        """The evaluation's settings, whose names are the same."""
        shared = settings.model_dump(include=set(cls.__dataclass_fields__))
        return cls(max_new_tokens=max_new_tokens, **shared)

    @property
    def calls_per_step(self) -> int:
        """Head evaluations in one step: 1, or 2 with guidance."""
        return calls_per_step(self.guidance_scale)


def options_of(sampling: Sampling | None, options: Mapping[str, Any]) -> Sampling:
    """``sampling`` with single options in place of its own, or the options alone.

    Raises ConfigError for an option that there is not, and without ``max_new_tokens``.
    """
    for name in options.keys() - Sampling.__dataclass_fields__.keys():
        hint = INSTEAD.get(name, f"the options are {', '.join(Sampling.__dataclass_fields__)}")
        raise ConfigError(f"{name} is no option of generation: {hint}")
    if sampling is not None:
        if not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling: a {type(sampling).__name__}; expected a Sampling")
        return replace(sampling, **options)
    if "max_new_tokens" not in options:
        raise ConfigError("max_new_tokens is missing: how many tokens each prompt gets at most")
    return Sampling(**options)


def read_prompts(config: GenerativeConfig, prompts: Any, max_new_tokens: int) -> list[list[int]]:
    """The ids of each prompt; tensors and arrays are accepted too.

    Raises ConfigError, naming the prompt, if one is empty, holds an id outside the vocabulary, or is longer than the
    model's positions leave room for.
    """
    read = []
    for row, prompt in enumerate(_listed(prompts, "prompts", "a list of token ids for each prompt")):
        ids = _listed(prompt, f"prompt {row}", "a list of token ids")
        if not ids:
            raise ConfigError(f"prompt {row} is empty: give at least one token")
        for token in ids:
            if not isinstance(token, Integral) or isinstance(token, bool):
                raise ConfigError(f"prompt {row}: {token!r} is no token id")
            if not 0 <= token < config.vocab_size:
                known = f"0 to {config.vocab_size - 1}"
                raise ConfigError(f"prompt {row}: token id {token} is outside the vocabulary ({known})")
        room = config.max_position_embeddings - 2 * config.block_size - max_new_tokens
        if len(ids) > room:
            raise ConfigError(
                f"prompt {row}: {len(ids)} tokens; beside {max_new_tokens} new ones only {max(room, 0)} fit"
            )
        read.append(ids)
    return read


def _listed(value: Any, name: str, expected: str) -> list:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise ConfigError(f"{name}: a {type(value).__name__}; expected {expected}")
    return list(value)
