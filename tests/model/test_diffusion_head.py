"""The head: what it starts from, what it depends on, and its parts against their formulas."""

import math

import pytest
import torch

from bitlm.diffusion.loss import to_codes
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.head import time_features

INPUTS = (4, 6, 32)  # m, B, D of the small models


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    m, B, D = INPUTS
    generator = torch.Generator().manual_seed(n)
    noisy, context = (torch.randn(n, m, width, generator=generator) for width in (B, D))
    return noisy, torch.rand(n, 1, generator=generator), context


def test_time_features_are_sinusoids_of_1000_t() -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    got = time_features(t)
    assert got.shape == (3, 256)
    for row, level in enumerate(t.tolist()):
        for i in (0, 1, 64, 127):
            angle = 1000 * level * 10_000 ** (-i / 128)
            assert got[row, i].item() == pytest.approx(math.cos(angle), abs=1e-3)
            assert got[row, 128 + i].item() == pytest.approx(math.sin(angle), abs=1e-3)


@pytest.mark.parametrize("denoiser", ["direct", "matched_filter"])
def test_a_fresh_head_knows_nothing(denoiser: str) -> None:
    """Zero output and zero modulation: log-odds 0, or with the matched filter those of independent fair bits."""
    head = BitLMForCausalLM(BitLMConfig(denoiser=denoiser, num_bits=8, block_size=4)).head
    noisy, t = torch.randn(5, 4, 8), torch.rand(5, 1) * 0.9 + 0.05
    logits = head(noisy, t, head.condition(torch.randn(5, 4, 64)))
    if denoiser == "direct":
        assert torch.equal(logits, torch.zeros(5, 4, 8))
        return
    for n in range(5):
        level = t[n].item()
        normal = torch.distributions.Normal
        log_odds = normal(1 - level, level).log_prob(noisy[n]) - normal(level - 1, level).log_prob(noisy[n])
        torch.testing.assert_close(logits[n], log_odds, rtol=1e-4, atol=1e-3)


def test_matched_filter_is_finite_without_noise() -> None:
    head = BitLMForCausalLM(BitLMConfig(denoiser="matched_filter", num_bits=8, block_size=4)).head
    clean = torch.randn(2, 4, 8).sign()
    logits = head(clean, torch.zeros(2, 1), head.null_condition())
    assert logits.isfinite().all()
    assert torch.equal(to_codes(logits), clean)


def test_every_slot_sees_every_slot_and_the_context_and_the_level(build) -> None:
    head = build().head
    noisy, t, context = inputs(1)
    logits = head(noisy, t, head.condition(context))
    for slot in range(4):
        other = noisy.clone()
        other[:, slot] += 1
        assert ((head(other, t, head.condition(context)) - logits).abs() > 1e-6).any(-1).all()
        other = context.clone()
        other[:, slot] += 1
        assert ((head(noisy, t, head.condition(other)) - logits).abs() > 1e-6).any(-1).all()
    assert not torch.allclose(head(noisy, t * 0.5, head.condition(context)), logits)
    assert not torch.allclose(head(noisy.flip(1), t, head.condition(context.flip(1))).flip(1), logits)  # slots differ


def test_blocks_of_a_batch_are_independent_and_one_level_serves_all(build) -> None:
    head = build().head
    noisy, t, context = inputs(5)
    together = head(noisy, t, head.condition(context))
    for n in range(5):
        alone = head(noisy[n : n + 1], t[n : n + 1], head.condition(context[n : n + 1]))
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-4)
    shared = head(noisy, t[:1], head.condition(context))
    torch.testing.assert_close(shared, head(noisy, t[:1].expand(5, 1), head.condition(context)), rtol=1e-4, atol=1e-4)


def test_modulation_is_shared_by_three_layers() -> None:
    for layers, groups in ((1, 1), (3, 1), (4, 2), (6, 2), (7, 3)):
        head = BitLMForCausalLM(BitLMConfig(head_num_layers=layers)).head
        assert len(head.layers) == layers
        assert len(head.modulations) == groups
