"""Which options of samplers go together, in the configuration as in ``Sampling``, and what a sampler is called."""

import dataclasses
from typing import Any

import pytest

from bitlm.config import EvaluateConfig, configure
from bitlm.config.sampler import OPTIONS, SAMPLER_KEYS, SamplerConfig, guidance, identity
from bitlm.errors import ConfigError
from bitlm.generation import Sampling

ARTICLE = {
    "sampler": "descent",
    "num_steps": 15,
    "guidance_scale": 9.0,
    "guidance_form": "prediction",
    "solver": "euler",
    "stagger": 0.0,
    "void": "clamp",
}


def test_settings_and_options_have_the_same_names_and_defaults() -> None:
    options = {field.name: field.default for field in dataclasses.fields(Sampling)}
    assert options.items() >= {name: field.default for name, field in SamplerConfig.model_fields.items()}.items()
    assert {name for names in OPTIONS.values() for name in names} <= SAMPLER_KEYS
    assert Sampling.of(EvaluateConfig(seed=7), 5) == Sampling(max_new_tokens=5, seed=7)


def test_a_fresh_evaluation_is_the_articles() -> None:
    assert EvaluateConfig().sampler_identity().items() >= ARTICLE.items()


def test_guidance_left_open_is_the_samplers_own() -> None:
    assert guidance(Sampling(max_new_tokens=1)) == (9.0, "prediction")
    assert guidance(Sampling(max_new_tokens=1, sampler="commit")) == (1.0, "token")
    assert guidance(Sampling(max_new_tokens=1, sampler="commit", guidance_scale=2)) == (2, "token")
    assert identity(SamplerConfig(guidance_scale=9.0)) == identity(SamplerConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.9}, "threshold = 0.9 goes with {}sampler = commit, not with descent"),
        ({"order": "surest"}, "order = surest goes with {}sampler = commit"),
        ({"slots_per_call": 2}, "slots_per_call = 2 goes with {}sampler = commit"),
        ({"sampler": "commit", "num_steps": 4}, "num_steps = 4 goes with {}sampler = descent, not with commit"),
        ({"sampler": "commit", "stagger": 1.0}, "stagger = 1.0 goes with {}sampler = descent"),
        ({"sampler": "commit", "solver": "dpmpp_2m"}, "solver = dpmpp_2m goes with {}sampler = descent"),
        ({"sampler": "commit", "guidance_high": 0.5}, "guidance_high = 0.5 goes with {}sampler = descent"),
        ({"sampler": "commit", "guidance_form": "logit"}, "guidance_form = logit goes with {}sampler = descent"),
        ({"guidance_low": 0.7, "guidance_high": 0.5}, "guidance_low = 0.7 is above {}guidance_high = 0.5"),
        ({"guidance_scale": 1.0, "guidance_low": 0.5}, "guidance_low and {}guidance_high go with guidance"),
    ],
)
def test_options_that_do_not_go_together_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        Sampling(max_new_tokens=1, **options)
    assert message.format("") in str(told.value)
    settings = [f"evaluate.{name}={value}" for name, value in options.items()]
    with pytest.raises(ConfigError) as told:
        configure("tiny-article", settings)
    assert f"evaluate.{message.format('evaluate.')}" in str(told.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["evaluate.sampler=commit", "evaluate.slots_per_call=3"],
            "evaluate.slots_per_call = 3 does not divide model.bl",
        ),
        (["evaluate.temperature=1"], "evaluate.temperature = 1.0 needs evaluate.sampler = commit"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_told(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        configure("tiny-article", settings)
    assert message in str(told.value)


def test_an_lm_head_alone_may_have_any_temperature() -> None:
    config = configure("tiny-article", ["evaluate.temperature=1", 'pretrain.heads=["lm"]'])
    assert config.evaluate.temperature == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "descent K=15 ω=9"),
        ({"stagger": 0.5}, "descent K=15 ω=9 stagger 0.5"),
        ({"num_steps": 6, "solver": "dpmpp_2m", "time_grid": "shifted", "guidance_scale": 1}, "descent K=6 2M shift 3"),
        ({"guidance_form": "logit", "guidance_high": 0.8}, "descent K=15 ω=9 of log-odds for t in [0, 0.8]"),
        ({"void": "nearest", "guidance_form": "token"}, "descent K=15 ω=9 of tokens void nearest"),
        ({"sampler": "commit"}, "commit left, 1 slot per call, greedy"),
        (
            {"sampler": "commit", "order": "surest", "slots_per_call": 2, "threshold": 0.9},
            "commit surest, 2 slots per call, sure above 0.9, greedy",
        ),
        (
            {"sampler": "commit", "guidance_scale": 2.0, "temperature": 1.0},
            "commit left, 1 slot per call, ω=2, temperature 1",
        ),
    ],
)
def test_the_name_tells_what_differs(options: dict[str, Any], name: str) -> None:
    assert Sampling(max_new_tokens=1, **options).name == name
    assert SamplerConfig(**options).sampler_name == name
