"""Causal attention inside the block: who sees whom, and one pass over all clean prefixes against one call for each."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_models import log_odds, prepare, prepare_null
from torch import Tensor

from bitlm.codes import encode
from bitlm.diffusion.posterior import Posterior
from bitlm.model import BitLMForCausalLM
from bitlm.model.network import posterior_mean_input, visible_slots
from bitlm.model.prefix import PrefixPass
from bitlm.model.state import BlockState

Build = Callable[..., BitLMForCausalLM]
M, B, D, V = 4, 6, 32, 50  # of the small models
PATHS = ("norm", "direct", "attention")
VARIANTS = [
    *((denoiser, path, None) for denoiser in ("direct", "matched_filter", "codebook_prior") for path in PATHS),
    *(("codebook", path, rank) for path in PATHS for rank in (None, 5)),
]
every_variant = pytest.mark.parametrize(("denoiser", "path", "rank"), VARIANTS)


def causal(build: Build, denoiser: str, path: str, rank: int | None) -> BitLMForCausalLM:
    model = build(denoiser=denoiser, context_path=path, codebook_rank=rank, attention="causal")
    if model.config.has_codebook:
        model.set_unigram(torch.arange(V) ** 2)
    return model


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """ε, C and ids of n blocks."""
    generator = torch.Generator().manual_seed(n)
    eps, context = (torch.randn(n, M, width, generator=generator) for width in (B, D))
    return eps, context, torch.randint(0, V, (n, M), generator=generator)


def every_log_p(posterior: Posterior, shape: tuple[int, int]) -> Tensor:
    """[n, s, V]"""
    return torch.stack([posterior.log_prob(torch.full(shape, y)) for y in range(V)], dim=-1)


def behind(model: BitLMForCausalLM, block: BlockState, eps: Tensor, ids: Tensor, prefix: int) -> Tensor:
    """log p [n, m, V] of one call of the head, with the first ``prefix`` slots clean and the others pure noise."""
    t = torch.tensor([[0.0] * prefix + [1.0] * (M - prefix)])
    noisy = torch.where(t[..., None] == 0, encode(ids, B), eps)
    return every_log_p(model.head(noisy, t, model.head_constants(), block), ids.shape)


def test_who_sees_whom() -> None:
    """All combinations of clean, noisy and pure noise in four slots."""
    for levels in itertools.product((0.0, 0.4, 0.9, 1.0), repeat=M):
        seen = visible_slots(torch.tensor([levels]))[0]
        for i, j in itertools.product(range(M), repeat=2):
            if i == j:
                expected = True
            elif levels[i] == 0:
                expected = levels[j] == 0 and j < i
            else:
                expected = levels[j] < 1
            assert bool(seen[i, j]) == expected, (levels, i, j)


def test_a_noisy_slot_is_shown_as_the_mean_of_a_standard_normal_behind_it() -> None:
    """By adding up over a grid of A_0."""
    grid = np.linspace(-8, 8, 4001)
    for t, noisy in itertools.product((0.2, 0.5, 0.9, 1.0), (-1.3, 0.4, 2.0)):
        weights = np.exp(-(grid**2) / 2 - (noisy - (1 - t) * grid) ** 2 / (2 * t**2))
        got = posterior_mean_input(torch.full((1, 1, 1), noisy), torch.full((1, 1), t))
        assert got.item() == pytest.approx((weights * grid).sum() / weights.sum(), abs=1e-5)
    clean = torch.tensor([[[1.0, -1.0]]])
    assert torch.equal(posterior_mean_input(clean, torch.zeros(1, 1)), clean)


@every_variant
@torch.no_grad()
def test_one_pass_answers_for_every_prefix(build: Build, denoiser: str, path: str, rank: int | None) -> None:
    model = causal(build, denoiser, path, rank)
    eps, context, ids = inputs(3)
    block = prepare(model, context)
    shown = PrefixPass.every(M, M, ids.device)
    pairs = [(slot, prefix) for prefix in range(M) for slot in range(prefix, M)]
    assert shown.queries.tolist() == [slot for slot, _ in pairs]
    constants = model.head.constants(model.model.embed_tokens.weight, tables=False)
    found = model.head.behind_prefix(ids[:, : M - 1], shown, constants, block)
    got = every_log_p(found, (3, len(pairs)))
    expected = [behind(model, block, eps, ids, prefix) for prefix in range(M)]
    for query, (slot, prefix) in enumerate(pairs):
        torch.testing.assert_close(got[:, query], expected[prefix][:, slot], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected[0][:, 3], expected[3][:, 3], atol=0.01)  # the prefix does matter


@every_variant
@torch.no_grad()
def test_pure_noise_tells_nothing(build: Build, denoiser: str, path: str, rank: int | None) -> None:
    """Neither its own slot nor the others, to the last bit; full attention listens to it."""
    _, context, ids = inputs(3)
    for attention in ("causal", "full"):
        model = build(denoiser=denoiser, context_path=path, codebook_rank=rank, attention=attention)
        block = prepare(model, context)
        one, other = (behind(model, block, torch.randn(3, M, B), ids, 2) for _ in range(2))
        assert torch.equal(one, other) == (attention == "causal")


@every_variant
@torch.no_grad()
def test_a_noisy_slot_hears_of_every_other_that_is_not_pure_noise(
    build: Build, denoiser: str, path: str, rank: int | None
) -> None:
    model = causal(build, denoiser, path, rank)
    eps, context, ids = inputs(3)
    block, t = prepare(model, context), torch.tensor([[0.0, 0.5, 0.7, 1.0]])
    noisy = torch.where(t[..., None] == 0, encode(ids, B), eps)
    before = log_odds(model, noisy, t, block)
    for slot in range(3):
        changed = noisy.clone()
        changed[:, slot] = -changed[:, slot]
        differs = (log_odds(model, changed, t, block) - before).abs().amax(-1) > 1e-6
        assert differs[:, 1:].all()
    changed = context.clone()
    changed[:, 1] += 1
    assert ((log_odds(model, noisy, t, prepare(model, changed)) - before).abs().amax(-1) > 1e-6)[:, 1:].all()


@every_variant
@pytest.mark.parametrize("guided", [False, True])
@torch.no_grad()
def test_a_walk_answers_as_calls_for_whole_blocks(
    build: Build, denoiser: str, path: str, rank: int | None, guided: bool
) -> None:
    """Step by step, 1, 2 or 4 slots in each; of 2n blocks with guidance."""
    model = causal(build, denoiser, path, rank)
    eps, context, ids = inputs(3)
    constants = model.walk_constants(guided)
    generic = [prepare(model, context), *([prepare_null(model, 3)] if guided else [])]
    computed = []
    model.head.network.register_forward_pre_hook(lambda _, args: computed.append(args[0].shape[1]))
    for count in (1, 2, 4):
        walk = model.head.walk(constants, model.head.prepare_sampling(context, constants), guided)
        for first in range(0, M, count):
            got = every_log_p(walk(ids[:, max(first - count, 0) : first], count), (3 * len(generic), count))
            assert computed.pop() == (count if first == 0 else 2 * count)  # no slot a second time
            for got_n, block in zip(got.split(3), generic, strict=True):
                expected = behind(model, block, eps, ids, first)[:, first : first + count]
                torch.testing.assert_close(got_n, expected, rtol=1e-4, atol=1e-4)
