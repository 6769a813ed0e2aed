"""The head through torch.compile says what it says without."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch._inductor.config

from bitlm.generation import denoiser
from bitlm.model import BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
PROMPTS = [[7, 3, 9, 1, 4, 4, 21, 30, 2][:length] for length in range(1, 10)]


@torch._inductor.config.patch("cpp.vec_isa_ok", False)  # code without vector instructions compiles in half the time
def test_the_compiled_head_says_the_same(build: Build) -> None:
    """One compilation without a break serves all numbers of rows, K and ω. (A GPU's graph is not made here.)"""
    model = build(num_layers=1)
    settings = {"max_new_tokens": 12, "num_steps": 4, "guidance_scale": 2.0}
    plain = model.generate(PROMPTS[:5], **settings)
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert model.generate(PROMPTS[:5], compile=True, **settings) == plain
    other = {"max_new_tokens": 4, "num_steps": 3, "guidance_scale": 3.0, "stagger": 0.5}
    assert model.generate(PROMPTS[:3], compile=True, **other) == model.generate(PROMPTS[:3], **other)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.fixture
def traced_without_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile traces, and refuses what it cannot trace, but makes no code, which would take long."""
    caches = (denoiser._compiled_head, denoiser._compiled_answer)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    for cached in caches:
        cached.cache_clear()
    torch._dynamo.reset()
    yield
    for cached in caches:
        cached.cache_clear()
    torch._dynamo.reset()


@pytest.mark.usefixtures("traced_without_code")
@pytest.mark.parametrize(
    "sampling", [{"num_steps": 3, "guidance_form": "token"}, {"sampler": "commit", "threshold": 1.0}]
)
def test_the_compiled_posterior_says_the_same(build: Build, sampling: dict) -> None:
    model, counters = build(denoiser="codebook", num_layers=1), torch._dynamo.utils.counters
    settings = {"max_new_tokens": 8, "guidance_scale": 2.0, "compile": True, **sampling}
    model.config.end_token_id = -1
    counters.clear()
    for prompts in (PROMPTS[:5], PROMPTS[:3]):
        assert model.generate(prompts, **settings) == model.generate(prompts, **settings | {"compile": False})
    assert counters["stats"]["unique_graphs"] == 2  # the head and one answer
