"""The sampler on a posterior known in closed form."""

import pytest
import torch
from toy import Mixture

from bitlm.diffusion.sampler import calls_per_block, denoise_block, guided

SOURCE = Mixture(
    words=torch.tensor([[[1, 1, 1], [1, 1, 1]], [[1, -1, 1], [-1, -1, 1]], [[-1, -1, -1], [1, -1, -1]]]).float(),
    probabilities=torch.tensor([0.5, 0.3, 0.2]),
)
NOISE = torch.randn(20_000, 2, 3, generator=torch.Generator().manual_seed(0))


def distance(num_steps: int) -> float:
    """Total variation between the words sampled in K steps and the source."""
    made = denoise_block(SOURCE.denoise, NOISE, num_steps).sign()
    shares = torch.stack([(made == word).all(-1).all(-1).float().mean() for word in SOURCE.words])
    other = 1 - shares.sum()
    return float((shares - SOURCE.probabilities).abs().sum() + other) / 2


def test_samples_approach_the_source_as_steps_grow() -> None:
    few, some, many = distance(2), distance(8), distance(64)
    assert few > some > many
    assert many < 0.02


def test_one_step_is_the_sign_of_the_estimate() -> None:
    one = denoise_block(SOURCE.denoise, NOISE[:50], 1)
    assert torch.equal(one, SOURCE.denoise(NOISE[:50], torch.ones(1, 1)))


@pytest.mark.parametrize("num_steps", [1, 2, 5, 15])
def test_each_step_is_the_articles_update(num_steps: int) -> None:
    calls = []

    def denoiser(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.shape == (1, 1)
        calls.append((noisy, t.item()))
        return torch.tanh(noisy * 3 + 0.1)

    final = denoise_block(denoiser, NOISE[:4], num_steps)
    assert [t for _, t in calls] == pytest.approx([k / num_steps for k in range(num_steps, 0, -1)])
    states = [noisy for noisy, _ in calls] + [final]
    assert torch.equal(states[0], NOISE[:4])
    for k, before, after in zip(range(num_steps, 0, -1), states, states[1:], strict=False):
        ratio = ((k - 1) / num_steps) / (k / num_steps)
        expected = ratio * before + (1 - ratio) * torch.tanh(before * 3 + 0.1)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)


def test_guidance_is_one_batched_call_and_extrapolates() -> None:
    sizes = []

    def both(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(noisy))
        conditional, null = noisy.chunk(2)
        assert torch.equal(conditional, null)
        return torch.cat([0.5 * conditional, 0.2 * null])

    x, t = NOISE[:3], torch.ones(1, 1)
    torch.testing.assert_close(guided(both, 4.0)(x, t), (0.2 + 4 * 0.3) * x)
    torch.testing.assert_close(guided(both, 1.0)(x, t), 0.5 * x)
    torch.testing.assert_close(guided(both, 0.0)(x, t), 0.2 * x)
    assert sizes == [6, 6, 6]


def test_calls_are_k_or_2k() -> None:
    assert calls_per_block(15, 1.0) == 15
    assert calls_per_block(15, 9.0) == calls_per_block(15, 0.0) == 30
