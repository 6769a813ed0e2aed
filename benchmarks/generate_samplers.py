"""The samplers that the benchmark of generation compares, and the way of the LM head that each is compared with."""

import json
from dataclasses import dataclass
from typing import Any

from bitlm.config.sampler import guidance
from bitlm.errors import ConfigError
from bitlm.generation import Sampling

COMMIT: dict[str, Any] = {"sampler": "commit"}
SECOND_ORDER: dict[str, Any] = {"num_steps": 6, "solver": "dpmpp_2m", "time_grid": "shifted"}
THRESHOLD = 0.5


@dataclass(frozen=True)
class Line:
    """``head`` with a sampling; ``temperature`` of the LM head that it is compared with, and that of the LM head."""

    head: str
    sampling: Sampling
    temperature: float

    @property
    def name(self) -> str:
        return self.sampling.name if self.head == "diffusion" else "LM head"

    @property
    def decoding(self) -> str:
        return f"sampled, {self.temperature:g}" if self.temperature else "greedy"


def default_options(m: int) -> list[dict[str, Any]]:
    """Samplers of blocks of m slots, each for greedy decoding and for sampling: a descent seeks the likeliest by much
    guidance, and samples without it."""
    commit = [{**COMMIT, "slots_per_call": slots} for slots in range(1, m + 1) if m % slots == 0]
    commit.append({**COMMIT, "threshold": THRESHOLD})
    descent: list[dict[str, Any]] = [{}, SECOND_ORDER]
    greedy = [*commit, *descent]
    sampled = [{**one, "temperature": 1.0} for one in commit] + [{**one, "guidance_scale": 1.0} for one in descent]
    return [*greedy, *sampled]


def parse(text: str) -> dict[str, Any]:
    """``KEY=VALUE,…`` of ``Sampling``, such as ``sampler=commit,order=surest``. Raises ConfigError for another form."""
    options: dict[str, Any] = {}
    for setting in text.split(","):
        key, separator, value = setting.partition("=")
        if key not in Sampling.__dataclass_fields__ or not separator:
            raise ConfigError(f"{setting!r} is no option of generation: write KEY=VALUE, such as sampler=commit")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def lm_sampling(temperature: float, new_tokens: int) -> Sampling:
    return Sampling(max_new_tokens=new_tokens, temperature=temperature)


def lines(options: list[dict[str, Any]], new_tokens: int, compile: bool) -> list[Line]:
    """A line for each sampler, behind the LM head that it is compared with: greedy ones first."""
    ours = []
    for one in options:
        sampling = Sampling(max_new_tokens=new_tokens, compile=compile, **one)
        ours.append(Line("diffusion", sampling, _peer_temperature(sampling)))
    found = []
    for temperature in sorted({line.temperature for line in ours}):
        found.append(Line("lm", lm_sampling(temperature, new_tokens), temperature))
        found += [line for line in ours if line.temperature == temperature]
    return found


def _peer_temperature(sampling: Sampling) -> float:
    """A descent without guidance samples from the posterior, with guidance it seeks its mode."""
    if sampling.sampler == "commit":
        return sampling.temperature
    return 1.0 if guidance(sampling)[0] == 1 else 0.0
