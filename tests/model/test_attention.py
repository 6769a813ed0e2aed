"""Attention implementations of Transformers: the same numbers, or a refusal."""

from collections.abc import Callable

import pytest
import torch

from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import BlockShape, NoiseKeys, block_noise
from bitlm.model import BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
IDS = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(3))
LEFT = torch.tensor([[0] * 6 + [1] * 10, [1] * 16])
NOISE = block_noise(NoiseKeys(1, range(2), [0] * 2), BlockShape(4, 4, 6), DiffusionConfig())
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]


@pytest.mark.parametrize("options", [{"head": "lm"}, {}, {"denoiser": "codebook", "slot_embedding": True}])
def test_eager_attention_is_the_same(build: Build, options: dict) -> None:
    """C and loss with and without padding, gradients, and generation, whose blocks see the cache."""
    plain, eager = build(**options), build(**options)
    eager.set_attn_implementation("eager")
    noise = None if plain.config.head == "lm" else NOISE
    for mask in (None, LEFT):
        torch.testing.assert_close(
            eager.compute_context(IDS, mask), plain.compute_context(IDS, mask), rtol=0, atol=1e-5
        )
        losses = [model(IDS, mask, noise=noise).loss for model in (eager, plain)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
        for loss in losses:
            loss.backward()
    for one, other in zip(eager.parameters(), plain.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-5
    settings = {"max_new_tokens": 9, "num_steps": 3, "guidance_scale": 2.0}
    assert eager.generate(PROMPTS, **settings).ids == plain.generate(PROMPTS, **settings).ids
