"""The forward process by its moments, the matched filter by Bayes' rule, the losses by finite differences."""

import math

import pytest
import torch

from bitlm.config import DiffusionConfig
from bitlm.diffusion.loss import bit_loss, to_codes
from bitlm.diffusion.process import corrupt, matched_filter, t_of_log_snr


def test_corruption_has_the_given_mean_and_deviation() -> None:
    clean, eps = torch.tensor([1.0, -1.0]), torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    noisy = corrupt(clean, eps, torch.tensor(0.3))
    torch.testing.assert_close(noisy.mean(0), 0.7 * clean, rtol=0, atol=0.005)
    torch.testing.assert_close(noisy.std(0), torch.tensor([0.3, 0.3]), rtol=0, atol=0.005)
    assert torch.equal(corrupt(clean, eps, torch.tensor(1.0)), eps)
    assert torch.equal(corrupt(clean, eps, torch.tensor(0.0)), clean.expand_as(eps))


def test_log_snr_is_the_definition() -> None:
    for log_snr in (-8.0, -1.0, 0.0, 2.0, 4.5):
        t = t_of_log_snr(torch.tensor(log_snr, dtype=torch.float64)).item()
        assert math.log(((1 - t) / t) ** 2) == pytest.approx(log_snr, abs=1e-9)


def test_matched_filter_is_the_log_odds_of_a_fair_bit() -> None:
    for t in (0.05, 0.5, 0.99):
        for value in (-2.0, 0.1, 1.3):
            densities = [math.exp(-((value - sign * (1 - t)) ** 2) / (2 * t * t)) for sign in (1, -1)]
            if min(densities) > 0:
                expected = math.log(densities[0] / densities[1])
                got = matched_filter(torch.tensor(value, dtype=torch.float64), torch.tensor(t, dtype=torch.float64))
                assert got.item() == pytest.approx(expected, rel=1e-9)


def test_codes_are_the_mean_of_bits_with_these_log_odds() -> None:
    logits = torch.tensor([-30.0, -2.0, 0.0, 0.5, 30.0], dtype=torch.float64)
    p = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(to_codes(logits), p - (1 - p))


@pytest.mark.parametrize("loss", ["velocity", "bce", "x"])
def test_gradients_in_float64(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, dtype=torch.float64, generator=generator).requires_grad_()
    clean = torch.randn(3, 2, 5, dtype=torch.float64, generator=generator).sign()
    t = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64).view(3, 1, 1)
    assert torch.autograd.gradcheck(lambda x: bit_loss(x, clean, t, DiffusionConfig(loss=loss)), (logits,))


def test_velocity_loss_is_the_squared_error_of_the_velocity() -> None:
    """With v = (A_t - A_0)/t, the velocity that an estimate implies at the same A_t."""
    clean, eps, t = torch.ones(1, 2, 3), torch.randn(1, 2, 3), torch.full((1, 1, 1), 0.4)
    noisy, logits = corrupt(clean, eps, t), torch.randn(1, 2, 3)
    error = (noisy - to_codes(logits)) / t - (noisy - clean) / t
    torch.testing.assert_close(bit_loss(logits, clean, t, DiffusionConfig()), (error**2).mean(-1))


def test_huge_logits_stay_finite() -> None:
    clean = torch.tensor([[[1.0, -1.0]]])
    for name in ("velocity", "bce", "x"):
        logits = torch.tensor([[[1e8, 1e8]]], requires_grad=True)
        loss = bit_loss(logits, clean, torch.full((1, 1, 1), 1e-6), DiffusionConfig(loss=name))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()
