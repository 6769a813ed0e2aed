"""What a user may choose when text is generated, and the check of what is asked for."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, get_args

from bitlm.config import sampler
from bitlm.config.sampler import GuidanceForm, Order, SamplerConfig, SamplerName, Solver, TimeGrid, VoidRule
from bitlm.errors import ConfigError
from bitlm.generation.protocol import GenerativeConfig

# Options of other models' generation, and what to do instead.
INSTEAD = {
    "input_ids": "give prompts, a list of token ids for each",
    "inputs": "give prompts, a list of token ids for each",
    "inputs_embeds": "give prompts, a list of token ids for each",
    "attention_mask": "a prompt is given without padding",
    "max_length": "max_new_tokens counts the new tokens alone",
    "do_sample": "a temperature above 0 samples; the descent of a diffusion head does by its noise",
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


_CHOICES = {
    "sampler": SamplerName,
    "guidance_form": GuidanceForm,
    "solver": Solver,
    "time_grid": TimeGrid,
    "void": VoidRule,
    "order": Order,
}
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda value: value >= 1, "at least 1 is needed"),
    "guidance_scale": (lambda value: 0 <= value < math.inf, "ω is a number of 0 or more"),
    "num_steps": (lambda value: value >= 1, "K is at least 1"),
    "guidance_low": (lambda value: 0 <= value <= 1, "a noise level is 0 to 1"),
    "guidance_high": (lambda value: 0 <= value <= 1, "a noise level is 0 to 1"),
    "time_shift": (lambda value: 0 < value < math.inf, "it is a positive number"),
    "stagger": (lambda value: 0 <= value <= 1, "choose 0 (all slots together) to 1 (one after the other)"),
    "slots_per_call": (lambda value: value >= 1, "at least 1 slot lands in a call"),
    "threshold": (lambda value: 0 <= value <= 1, "it is a probability, 0 to 1, or None for never"),
    "temperature": (lambda value: 0 <= value < math.inf, "it is a number of 0 or more"),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of generation. Those from ``sampler`` to ``threshold`` concern the diffusion head alone.
    ``bitlm.config.sampler`` says which go together.

    max_new_tokens: tokens per prompt at most.
    sampler: ``descent``, K steps from noise to the signs of the code (``bitlm.diffusion.descent``), or ``commit``:
        slots land on tokens (``bitlm.diffusion.commitment``).
    guidance_scale, guidance_form: ω and what it is applied to, as in ``bitlm.diffusion.guidance``; 1 is no guidance and
        halves the head calls. None: 9 and ``prediction`` for descent, 1 and ``token`` for commit.
    num_steps, solver, guidance_low, guidance_high, time_grid, time_shift, stagger, void: of descent: K, ``euler`` or
        ``dpmpp_2m``, the noise levels between which to guide, those of ``bitlm.diffusion.schedule.noise_levels``, and
        what becomes of a void corner, as in ``bitlm.codes.decode``.
    order, slots_per_call, threshold: of commit: ``left`` or ``surest``, how many slots land in a call at least, and
        above which probability of their best token others land too (None: never).
    temperature: of the LM head and of commit; 0 takes the most probable token.
    seed: of all randomness, together with a prompt's example id and the place of block or token.
    trace: keep the value of every bit at every step.
    compile: the head through torch.compile and, on a GPU, a block as one CUDA graph. It costs up to minutes at first
        use; floating-point results may then differ in the last places.

    Raises ConfigError for a value out of its range, or an option that another one excludes.
    """

    max_new_tokens: int
    sampler: SamplerName = "descent"
    guidance_scale: float | None = None
    guidance_form: GuidanceForm | None = None
    num_steps: int = 15
    solver: Solver = "euler"
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    time_grid: TimeGrid = "uniform"
    time_shift: float = 3.0
    stagger: float = 0.0
    void: VoidRule = "clamp"
    order: Order = "left"
    slots_per_call: int = 1
    threshold: float | None = None
    temperature: float = 0.0
    seed: int = 0
    trace: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, field in self.__dataclass_fields__.items():
            value, (kind, expected) = getattr(self, name), _KINDS.get(field.type, (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and kind in (Integral, Real)):
                raise ConfigError(f"{name} = {value!r}: expected {expected}")
            if name in _CHOICES and value is not None and value not in get_args(_CHOICES[name]):
                raise ConfigError(f"{name} = {value!r} is unknown; choose {' or '.join(get_args(_CHOICES[name]))}")
            if name in _RANGES and value is not None and not _RANGES[name][0](value):
                raise ConfigError(f"{name} = {value}: {_RANGES[name][1]}")
        try:
            sampler.check(self)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def of(cls, settings: SamplerConfig, max_new_tokens: int, **others: Any) -> "Sampling":
        """With the sampler of these settings, and their seed where they have one."""
        shared = settings.model_dump(include=set(cls.__dataclass_fields__))
        return cls(max_new_tokens=max_new_tokens, **shared | others)

    @property
    def name(self) -> str:
        """The sampler of a diffusion head in a few words, as in tables."""
        return sampler.describe(self)

    def check_model(self, config: GenerativeConfig) -> None:
        """Raises ConfigError for options that a model of this configuration does not have."""
        if config.head == "lm":
            if self.trace:
                raise ConfigError("trace: the LM head realizes tokens at once, there are no bits to trace")
        elif self.sampler == "commit":
            if config.block_size % self.slots_per_call:
                raise ConfigError(
                    f"slots_per_call = {self.slots_per_call} does not divide the model's block_size = "
                    f"{config.block_size}"
                )
        elif self.temperature:
            raise ConfigError(
                f"temperature = {self.temperature}: the descent of a diffusion head has none, it samples by its noise; "
                "choose sampler = commit"
            )


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
