"""A head that is shown its last estimate: training and sampling against loops written out by hand."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_models import prepare
from torch import Tensor

from bitlm.batch import Batch
from bitlm.codes import encode
from bitlm.config import DiffusionConfig, configure
from bitlm.diffusion.chain import chain_per_token
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise, sample_noise
from bitlm.diffusion.schedule import noise_levels
from bitlm.errors import ConfigError
from bitlm.model import BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
HEADS = [{}, {"denoiser": "codebook", "attention": "causal", "context_path": "attention"}]
IDS = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))


def settings(head: dict) -> DiffusionConfig:
    loss = "token" if head.get("denoiser") == "codebook" else "velocity"
    return DiffusionConfig(loss=loss, noise_draws=3, slot_noise=0.5, condition_dropout=0.3)


def noise_for(diffusion: DiffusionConfig, indices: tuple[int, ...] = (0, 1)) -> Noise:
    return block_noise(NoiseKeys(5, indices, [0] * len(indices)), BlockShape(4, 4, 6), diffusion)


def estimate_of(log_odds: Tensor) -> Tensor:
    return 2 / (1 + (-log_odds).exp()) - 1


def loss_by_hand(model: BitLMForCausalLM, noise: Noise, diffusion: DiffusionConfig) -> Tensor:
    """[b, N, draws, m], block by block and draw by draw, first the pass that makes the estimate, then the one that is
    told it."""
    contexts, losses = model.compute_context(IDS), []
    for row in range(2):
        for n in range(4):
            targets = IDS[row, 4 * n : 4 * n + 4]
            clean = encode(targets, 6)
            context = model.head.null_context if noise.drop[row, n] else contexts[row, n]
            given = model.head_constants(), prepare(model, context[None])
            for draw in range(3):
                t = noise.t[row, n, draw][None]
                noisy = (1 - t[..., None]) * clean + t[..., None] * noise.eps[row, n, draw]
                estimate = torch.zeros(1, 4, 6)
                if noise.estimated[row, n, draw]:
                    estimate = estimate_of(model.head(noisy, t, *given).log_odds()).detach()
                posterior = model.head(noisy, t, *given, estimate=estimate)
                if diffusion.loss == "token":
                    losses.append(-posterior.log_prob(targets[None])[0])
                else:
                    error = (estimate_of(posterior.log_odds()) - clean) / t[..., None].clamp(min=diffusion.t_min)
                    losses.append((error**2).mean(-1)[0])
    return torch.stack(losses).view(2, 4, 3, 4)


@pytest.mark.parametrize("head", HEADS)
def test_training_is_the_loop_of_two_passes(build: Build, head: dict) -> None:
    diffusion = settings(head)
    noise = noise_for(diffusion)
    assert 0.2 < noise.estimated.float().mean() < 0.8
    found, expected = build(self_conditioning=True, **head), build(self_conditioning=True, **head)
    output = found(IDS, noise=noise, diffusion=diffusion)
    by_hand = loss_by_hand(expected, noise, diffusion)
    torch.testing.assert_close(output.slot_loss, by_hand.detach(), rtol=1e-3, atol=1e-4)
    output.loss.backward()
    by_hand.mean().backward()
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert one.grad.any(), name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-4, msg=lambda text, name=name: name + text)
    told = output.slot_loss
    untold = found(IDS, noise=replace(noise, estimated=None), diffusion=diffusion).slot_loss
    differs = ~torch.isclose(told, untold, rtol=1e-5, atol=1e-6).all(-1)
    assert torch.equal(differs, noise.estimated)


def test_a_coin_for_every_draw_belongs_to_the_sequence() -> None:
    shape, diffusion = BlockShape(500, 1, 2), DiffusionConfig(noise_draws=2)
    noise = block_noise(NoiseKeys(0, range(20), [0] * 20), shape, diffusion)
    n = noise.estimated.numel()
    assert noise.estimated.shape == (20, 500, 2)
    assert noise.estimated.float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)
    agree = (noise.estimated[..., 0] == noise.estimated[..., 1]).float().mean().item()
    assert agree == pytest.approx(0.5, abs=5 * 0.5 / (n / 2) ** 0.5)
    for seed, index, epoch, same in ((0, 7, 0, True), (1, 7, 0, False), (0, 8, 0, False), (0, 7, 1, False)):
        other = block_noise(NoiseKeys(seed, [index], [epoch]), shape, diffusion).estimated[0]
        assert torch.equal(other, noise.estimated[7]) == same


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("scale", "stagger"), [(1.0, 0.0), (5.0, 0.0), (2.0, 1.0)])
@torch.no_grad()
def test_the_descent_is_the_loop_that_passes_its_estimate_on(
    build: Build, head: dict, scale: float, stagger: float
) -> None:
    model, K = build(self_conditioning=True, vocab_size=64, **head), 6
    blocks = [
        prepare(model, each[None]) for each in (model.compute_context(IDS[:1, :8])[0, 1], model.head.null_context)
    ]
    levels = noise_levels(K, 4, stagger=stagger).float()
    A, estimate = sample_noise(3, 0, 0, 4, 6)[None], torch.zeros(1, 4, 6)
    states, largest = [A[0]], 0.0
    for t, following in itertools.pairwise(levels):
        clean = (t == 0)[:, None]
        shown = torch.where(clean, A.sign(), A)
        given = shown, t[None], model.head_constants()
        told = estimate.clamp(-1, 1)
        conditional, null = (estimate_of(model.head(*given, block, estimate=told).log_odds()) for block in blocks)
        estimate = torch.where(clean, A, null + scale * (conditional - null))
        ratio = torch.where(t > 0, following / t, 1.0)[:, None]
        A = ratio * A + (1 - ratio) * estimate
        states.append(A[0])
        largest = max(largest, estimate.abs().max().item())
    assert (largest > 1) == (scale > 1)
    options = {"num_steps": K, "guidance_scale": scale, "stagger": stagger, "seed": 3}
    made = next(model.stream([IDS[0, :4].tolist()], max_new_tokens=4, trace=True, **options))
    torch.testing.assert_close(made.states[0], torch.stack(states), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_chain_and_commitment_need_no_estimate(build: Build) -> None:
    model, twin = build(self_conditioning=True, **HEADS[1]), build(**HEADS[1])
    twin.load_state_dict(model.state_dict(), strict=False)
    batches = [Batch(IDS, None, None, [0, 1], [0, 0])]
    assert chain_per_token(model, batches) == chain_per_token(twin, batches)
    made = [each.generate([[1, 2, 3]], max_new_tokens=9, sampler="commit") for each in (model, twin)]
    assert made[0].ids == made[1].ids


def test_without_noise_draws_nothing_would_teach_it() -> None:
    chain = ["pretrain.diffusion.chain_slots=1", "pretrain.diffusion.noise_share=0"]
    causal = ["model.head.attention=causal", "model.head.self_conditioning=true"]
    with pytest.raises(ConfigError, match=r"learns from noise draws, and pretrain\.diffusion\.noise_share = 0 leaves"):
        configure("tiny", [*causal, *chain])
    assert configure("tiny", [*causal, *chain[:1]]).model.head.self_conditioning
