"""What generation may be asked for, and what it refuses."""

from collections.abc import Callable

import pytest
import torch

from bitlm.errors import ConfigError
from bitlm.generation import Sampling
from bitlm.model import BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]


def test_options_may_be_given_together_or_one_by_one(build: Build) -> None:
    model = build()
    sampling = Sampling(max_new_tokens=8, num_steps=3, guidance_scale=1.0, seed=5)
    one_by_one = model.generate([[1]], max_new_tokens=8, num_steps=3, guidance_scale=1.0, seed=5)
    assert model.generate([[1]], sampling=sampling) == one_by_one
    assert model.generate([[1]], sampling=sampling, seed=6) != one_by_one


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 50]], {}, "prompt 0: token id 50 is outside the vocabulary"),
        ([[-1]], {}, "token id -1"),
        ([[1] * 50_000], {}, "prompt 0: 50000 tokens"),
        ([[1]], {"num_steps": 0}, "num_steps = 0"),
        ([[1]], {"guidance_scale": -0.5}, "guidance_scale = -0.5"),
        ([[1]], {"guidance_scale": float("nan")}, "guidance_scale = nan"),
        ([[1]], {"guidance_form": "odds"}, "guidance_form = 'odds'"),
        ([[1]], {"stagger": 1.1}, "stagger = 1.1"),
        ([[1]], {"stagger": -0.1}, "stagger = -0.1"),
        ([[1]], {"time_grid": "cosine"}, "time_grid = 'cosine'"),
        ([[1]], {"time_shift": 0.0}, "time_shift = 0.0"),
        ([[1]], {"void": "round"}, "void = 'round'"),
        ([[1]], {"sampler": "commit", "threshold": 1.5}, "threshold = 1.5: it is a probability"),
        ([[1]], {"sampler": "commit", "slots_per_call": 0}, "slots_per_call = 0"),
        (
            [[1]],
            {"sampler": "commit", "slots_per_call": 3},
            "slots_per_call = 3 does not divide the model's block_size",
        ),
        ([[1]], {"sampler": "commit", "order": "right"}, "order = 'right' is unknown; choose left or surest"),
        ([[1]], {"sampler": "ddim"}, "sampler = 'ddim' is unknown; choose descent or commit"),
        ([[1]], {"solver": "heun"}, "solver = 'heun' is unknown"),
        ([[1]], {"guidance_high": 2.0}, "guidance_high = 2.0"),
        ([[1]], {"temperature": -1.0}, "temperature = -1.0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens = 0"),
        ([[1]], {"example_ids": [1, 2]}, "2 example ids for 1 prompts"),
        ([[1]], {"example_ids": ["a"]}, r"example_ids = \['a'\]: expected whole numbers"),
        (None, {}, "prompts: a NoneType; expected a list of token ids for each prompt"),
        ("Return the", {}, "prompts: a str"),
        ({"input_ids": [[1]]}, {}, "prompts: a dict"),
        ([5, 6], {}, "prompt 0: a int; expected a list of token ids"),
        (["Return"], {}, "prompt 0: a str"),
        ([[1.5]], {}, "prompt 0: 1.5 is no token id"),
        (torch.ones(1, 2, 3, dtype=torch.long), {}, r"prompt 0: \[1, 1, 1\] is no token id"),
        ([[1]], {"max_new_tokens": "4"}, "max_new_tokens = '4': expected a whole number"),
        ([[1]], {"num_steps": 2.0}, "num_steps = 2.0: expected a whole number"),
        ([[1]], {"guidance_scale": "9"}, "guidance_scale = '9': expected a number or None"),
        ([[1]], {"sampler": "commit", "threshold": "0.9"}, "threshold = '0.9': expected a number or None"),
        ([[1]], {"trace": 1}, "trace = 1: expected True or False"),
        ([[1]], {"temperature": 0.7}, "temperature = 0.7: the descent of a diffusion head has none"),
        ([[1]], {"max_length": 20}, "max_length is no option of generation: max_new_tokens"),
        ([[1]], {"do_sample": True}, "do_sample is no option of generation: a temperature above 0 samples"),
        (
            [[1]],
            {"attention_mask": torch.ones(1, 1)},
            "attention_mask is no option .*: a prompt is given",
        ),
        ([[1]], {"top_p": 0.9}, "top_p is no option of generation: the options are max_new_tokens, sampler"),
        ([[1]], {"sampling": {"max_new_tokens": 4}}, "sampling: a dict; expected a Sampling"),
        (None, {"input_ids": torch.ones(1, 2)}, "input_ids is no option of generation: give prompts"),
    ],
)
def test_mistakes_are_told_before_anything_runs(build: Build, prompts: list, options: dict, message: str) -> None:
    model = build()
    for call in (model.generate, model.stream):
        with pytest.raises(ConfigError, match=message):
            call(prompts, **{"max_new_tokens": 4} | options)


def test_the_number_of_new_tokens_is_needed(build: Build) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens is missing"):
        build().generate([[1]])


def test_prompts_may_be_tensors(build: Build) -> None:
    model, settings = build(), {"max_new_tokens": 4, "num_steps": 2}
    expected = model.generate([[1, 2, 3], [4, 5, 6]], **settings)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert model.generate(ids, **settings) == model.generate(list(ids.numpy()), **settings) == expected


def test_the_lm_head_has_nothing_to_trace(build: Build) -> None:
    with pytest.raises(ConfigError, match="trace"):
        build(head="lm").generate([[1]], max_new_tokens=1, trace=True)


def test_no_prompts_no_output(build: Build) -> None:
    assert build().generate([], max_new_tokens=4).ids == []
