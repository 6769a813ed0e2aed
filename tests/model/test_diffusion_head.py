"""The head: what it starts from, what it depends on, and its parts against their formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from small_models import log_odds, prepare, prepare_null, prepare_sampling
from torch import Tensor

from bitlm.diffusion.loss import to_codes
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.network import time_features

Build = Callable[..., BitLMForCausalLM]
M, B, D = 4, 6, 32  # of the small models
DENOISERS = ("direct", "matched_filter", "codebook_prior", "codebook")
VARIANTS = [(denoiser, path, None) for denoiser in DENOISERS for path in ("norm", "direct")] + [("codebook", "norm", 5)]
every_variant = pytest.mark.parametrize(("denoiser", "path", "rank"), VARIANTS)


def options(denoiser: str, path: str, rank: int | None) -> dict:
    return {"denoiser": denoiser, "context_path": path, "codebook_rank": rank}


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    noisy, context = (torch.randn(n, M, width, generator=generator) for width in (B, D))
    return noisy, torch.rand(n, 1, generator=generator) * 0.9 + 0.1, context


def fair_log_odds(noisy: Tensor, level: float) -> Tensor:
    normal = torch.distributions.Normal
    return normal(1 - level, level).log_prob(noisy) - normal(level - 1, level).log_prob(noisy)


def test_time_features_are_sinusoids_of_1000_t() -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    got = time_features(t)
    assert got.shape == (3, 256)
    for row, level in enumerate(t.tolist()):
        for i in (0, 1, 64, 127):
            angle = 1000 * level * 10_000 ** (-i / 128)
            assert got[row, i].item() == pytest.approx(math.cos(angle), abs=1e-3)
            assert got[row, 128 + i].item() == pytest.approx(math.sin(angle), abs=1e-3)


@pytest.mark.parametrize("path", ["norm", "direct"])
@pytest.mark.parametrize("denoiser", ["direct", "matched_filter"])
def test_a_fresh_head_knows_nothing(denoiser: str, path: str) -> None:
    """Zero output and zero modulation: log-odds 0, or with the matched filter those of independent fair bits."""
    shape = {"denoiser": denoiser, "context_path": path, "num_layers": 2, "head_dim": 16}
    model = BitLMForCausalLM(BitLMConfig(num_bits=8, block_size=4, diffusion_head=shape))
    noisy, t = torch.randn(5, 4, 8), torch.rand(5, 1) * 0.9 + 0.05
    logits = log_odds(model, noisy, t, prepare(model, torch.randn(5, 4, 64)))
    if denoiser == "direct":
        assert torch.equal(logits, torch.zeros(5, 4, 8))
        return
    for n in range(5):
        torch.testing.assert_close(logits[n], fair_log_odds(noisy[n], t[n].item()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("denoiser", DENOISERS[1:])
def test_logits_are_finite_without_noise(build: Build, denoiser: str) -> None:
    model = build(denoiser=denoiser, context_path="direct", num_bits=7)  # the first bit is never 1
    ids = torch.randint(0, 50, (2, 4))
    clean = ((ids[..., None] >> torch.arange(6, -1, -1)) & 1) * 2.0 - 1
    logits = log_odds(
        model,
        clean,
        torch.zeros(2, 1),
        prepare_null(model, 2),
    )
    assert logits.isfinite().all()
    assert torch.equal(to_codes(logits), clean)


@every_variant
@torch.no_grad()
def test_every_slot_sees_every_slot_and_the_context_and_the_level(
    build: Build, denoiser: str, path: str, rank: int | None
) -> None:
    model = build(**options(denoiser, path, rank))
    noisy, t, context = inputs(1)

    def answer(noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return log_odds(model, noisy, t, prepare(model, context))

    logits = answer(noisy, t, context)
    for slot in range(M):
        other = noisy.clone()
        other[:, slot] += 1
        assert ((answer(other, t, context) - logits).abs() > 1e-6).any(-1).all()
        other = context.clone()
        other[:, slot] += 1
        assert ((answer(noisy, t, other) - logits).abs() > 1e-6).any(-1).all()
    assert not torch.allclose(answer(noisy, t * 0.5, context), logits)
    assert not torch.allclose(answer(noisy.flip(1), t, context.flip(1)).flip(1), logits)  # slots differ


@every_variant
@torch.no_grad()
def test_blocks_of_a_batch_are_independent_and_one_level_serves_all(
    build: Build, denoiser: str, path: str, rank: int | None
) -> None:
    model = build(**options(denoiser, path, rank))
    noisy, t, context = inputs(5)
    prepared = prepare(model, context)
    together = log_odds(model, noisy, t, prepared)
    for n in range(5):
        alone = log_odds(model, noisy[n : n + 1], t[n : n + 1], prepare(model, context[n : n + 1]))
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-4)
    shared = log_odds(model, noisy, t[:1], prepared)
    torch.testing.assert_close(shared, log_odds(model, noisy, t[:1].expand(5, 1), prepared), rtol=1e-4, atol=1e-4)
    rows = torch.tensor([4, 0])
    picked = log_odds(model, noisy[rows], t[rows], prepared.select(rows))
    torch.testing.assert_close(picked, together[rows], rtol=1e-4, atol=1e-4)
    twice = log_odds(model, noisy.repeat_interleave(2, 0), t.repeat_interleave(2, 0), prepared.repeat(2))
    torch.testing.assert_close(twice, together.repeat_interleave(2, 0), rtol=1e-4, atol=1e-4)
    joined = log_odds(
        model,
        noisy[[0, 1, 0]],
        t[[0, 1, 0]],
        prepared.select(rows[1:]).concatenate(prepared.select(torch.tensor([1, 0]))),
    )
    torch.testing.assert_close(joined, together[[0, 1, 0]], rtol=1e-4, atol=1e-4)


@every_variant
def test_equal_levels_in_all_slots_are_the_shared_level(
    build: Build, denoiser: str, path: str, rank: int | None
) -> None:
    model = build(**options(denoiser, path, rank))
    noisy, t, context = inputs(5)

    def run(t: Tensor) -> list[Tensor]:
        model.zero_grad()
        logits = log_odds(model, noisy, t, prepare(model, context))
        logits.tanh().sum().backward()
        return [logits, *(p.grad.clone() for p in model.head.parameters() if p.grad is not None)]

    for one, other in zip(run(t), run(t.expand(5, M).contiguous()), strict=True):
        assert torch.equal(one, other)


@every_variant
@torch.no_grad()
def test_each_slot_has_its_own_level(build: Build, denoiser: str, path: str, rank: int | None) -> None:
    """Other levels elsewhere change a slot's logits only through the network; its own also by the matched filter."""
    model = build(**options(denoiser, path, rank))
    noisy, _, context = inputs(3)
    prepared = prepare(model, context)
    t = torch.tensor([[0.3, 0.5, 0.7, 0.9]]).expand(3, M)
    logits = log_odds(model, noisy, t, prepared)
    for slot in range(M):
        changed = t.clone()
        changed[:, slot] = 0.2
        other = log_odds(model, noisy, changed, prepared)
        assert ((other - logits).abs() > 1e-7).any(-1).all()
    if denoiser == "matched_filter":
        for linear in filter(None, (model.head.readout.output, model.head.context_log_odds)):
            linear.weight.zero_()
            linear.bias.zero_()
        logits = log_odds(model, noisy, t, prepare(model, context))
        for slot, level in enumerate([0.3, 0.5, 0.7, 0.9]):
            torch.testing.assert_close(logits[:, slot], fair_log_odds(noisy[:, slot], level), rtol=1e-4, atol=1e-3)


@every_variant
@torch.no_grad()
def test_sampling_is_prepared_once_for_both_branches(build: Build, denoiser: str, path: str, rank: int | None) -> None:
    model = build(**options(denoiser, path, rank))
    noisy, t, context = inputs(3)
    conditional = log_odds(model, noisy, t, prepare(model, context))
    null = log_odds(model, noisy, t, prepare_null(model, 3))
    alone = prepare_sampling(model, context, guided=False)
    torch.testing.assert_close(log_odds(model, noisy, t, alone), conditional, rtol=1e-5, atol=1e-5)
    both = prepare_sampling(model, context, guided=True)
    got = log_odds(model, noisy.repeat(2, 1, 1), t.repeat(2, 1), both)
    torch.testing.assert_close(got, torch.cat([conditional, null]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_direct_path_reads_log_odds_and_input_from_the_context(build: Build) -> None:
    model = build(context_path="direct")
    noisy, t, context = inputs(2)
    prepared = prepare(model, context)
    weight, bias = model.head.context_log_odds.weight.double(), model.head.context_log_odds.bias.double()
    expected = torch.stack([weight @ block.flatten().double() + bias for block in context]).view(2, M, B)
    torch.testing.assert_close(prepared.context_log_odds.double(), expected, rtol=1e-5, atol=1e-5)
    logits = log_odds(model, noisy, t, prepared)
    model.head.context_log_odds.weight.zero_()
    model.head.context_log_odds.bias.zero_()
    rest = log_odds(model, noisy, t, prepare(model, context))
    torch.testing.assert_close(logits - rest, prepared.context_log_odds, rtol=1e-4, atol=1e-4)
    model.head.network.condition.weight.zero_()
    assert not torch.allclose(log_odds(model, noisy, t, prepare(model, context)), rest)


def test_modulation_is_shared_by_three_layers() -> None:
    for layers, groups in ((1, 1), (3, 1), (4, 2), (6, 2), (7, 3)):
        head = BitLMForCausalLM(BitLMConfig(diffusion_head={"num_layers": layers, "head_dim": 16})).head
        assert len(head.network.layers) == layers
        assert len(head.network.modulations) == groups
