"""A backbone that is fed with codes: against an embedding table of the same vectors, and with flipped bits."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitlm.config import DiffusionConfig, configure
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.errors import ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
IDS = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(0))
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3]]
WITHOUT_TABLE = [{}, {"head": "lm", "tie_word_embeddings": False}]
WITH_TABLE = [{"denoiser": "codebook"}, {"denoiser": "codebook_prior"}, {"head": "lm"}]


def table(model: BitLMForCausalLM) -> Tensor:
    """What the map makes of each of the 2^B codes, written out in float64."""
    W, b, U, c = (parameter.detach().double() for parameter in model.code_input.parameters())
    rows = []
    for token in range(1 << model.config.num_bits):
        code = torch.tensor([2 * int(bit) - 1.0 for bit in format(token, f"0{model.config.num_bits}b")]).double()
        hidden = W @ code + b
        rows.append(U @ (hidden / (1 + (-hidden).exp())) + c)
    return torch.stack(rows)


def noise_for(diffusion: DiffusionConfig, indices: tuple[int, ...] = (0, 1, 2), seed: int = 5, epoch: int = 0) -> Noise:
    return block_noise(NoiseKeys(seed, indices, [epoch] * len(indices)), BlockShape(4, 4, 6), diffusion)


@pytest.mark.parametrize("options", WITHOUT_TABLE)
@torch.no_grad()
def test_it_is_an_embedding_table_of_its_own_vectors(build: Build, options: dict) -> None:
    model, twin = build(input="codes", **options), build(**options)
    rows = table(model)
    torch.testing.assert_close(model.embed(IDS).double(), rows[IDS], rtol=1e-5, atol=1e-5)
    twin.load_state_dict({name: value for name, value in model.state_dict().items()}, strict=False)
    twin.model.embed_tokens.weight[: len(rows)] = rows
    torch.testing.assert_close(model.compute_context(IDS), twin.compute_context(IDS), rtol=1e-3, atol=1e-4)
    settings = {} if "head" in options else {"num_steps": 3}
    made = [each.generate(PROMPTS, max_new_tokens=12, **settings) for each in (model, twin)]
    assert made[0].ids == made[1].ids


@pytest.mark.parametrize("options", [*WITHOUT_TABLE, *WITH_TABLE])
def test_every_parameter_learns_and_nothing_idle_is_kept(build: Build, options: dict) -> None:
    model = build(input="codes", **options)
    diffusion = DiffusionConfig(loss="token" if options.get("denoiser") == "codebook" else "bce", condition_dropout=0.3)
    noise = None if "head" in options else noise_for(diffusion)
    model(IDS, noise=noise, diffusion=diffusion).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert (model.embedding is None) == (options in WITHOUT_TABLE)
    assert (model.get_input_embeddings() is None) == (options in WITHOUT_TABLE)


def test_a_table_that_is_not_there_cannot_be_replaced(build: Build) -> None:
    model = build(input="codes")
    assert model.resize_token_embeddings(50) is None
    with pytest.raises(ConfigError, match="fed with codes and has no embedding"):
        model.set_input_embeddings(torch.nn.Embedding(128, 32))


@pytest.mark.parametrize(("initialization", "std"), [("qwen3", 0.02), ("scaled", 256**-0.5)])
def test_it_starts_as_large_as_rows_of_an_embedding(initialization: str, std: float) -> None:
    torch.manual_seed(0)
    config = BitLMConfig(input="codes", initialization=initialization, hidden_size=256, num_bits=9)
    rows = table(BitLMForCausalLM(config))
    assert rows.std().item() == pytest.approx(std, rel=0.1)
    assert torch.corrcoef(rows[:200]).fill_diagonal_(0).abs().max() < 0.99  # and tells tokens apart


def test_flips_are_a_share_of_the_bits_and_belong_to_the_sequence() -> None:
    shape, diffusion = BlockShape(100, 4, 11), DiffusionConfig(flip_share=0.1)
    noise = block_noise(NoiseKeys(5, range(20), [0] * 20), shape, diffusion)
    assert noise.flips.shape == (20, 400, 11)
    n = noise.flips.numel()
    assert noise.flips.float().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / n) ** 0.5)
    for bit in range(11):
        share = noise.flips[..., bit].float().mean().item()
        assert share == pytest.approx(0.1, abs=5 * (0.09 / (n / 11)) ** 0.5)
    plain = block_noise(NoiseKeys(5, range(20), [0] * 20), shape, DiffusionConfig())
    assert plain.flips is None
    for name in ("eps", "t", "drop", "learn", "offsets"):  # the other draws stay what they were
        assert torch.equal(getattr(noise, name), getattr(plain, name))
    alone = block_noise(NoiseKeys(5, [7], [0]), shape, diffusion)
    assert torch.equal(alone.flips[0], noise.flips[7])
    others = [(6, 7, 0), (5, 8, 0), (5, 7, 1)]
    for seed, index, epoch in others:
        other = block_noise(NoiseKeys(seed, [index], [epoch]), shape, diffusion)
        assert not torch.equal(other.flips, alone.flips)


@torch.no_grad()
def test_flips_change_what_the_backbone_is_fed_and_nothing_else(build: Build) -> None:
    """V = 2^B: the flipped code is another token's. The loss of a block is that behind such tokens."""
    model = build(input="codes", vocab_size=64)
    diffusion = DiffusionConfig(loss="bce", flip_share=0.2)
    noise = noise_for(diffusion)
    flipped = IDS ^ (noise.flips * 2 ** torch.arange(5, -1, -1)).sum(-1)
    torch.testing.assert_close(model.embed(IDS, noise.flips), model.embed(flipped), rtol=0, atol=0)
    found = model(IDS, noise=noise, diffusion=diffusion).slot_loss
    unflipped = replace(noise, flips=None)
    for n in range(4):
        ids = torch.cat([flipped[:, : 4 * n], IDS[:, 4 * n :]], dim=1)
        expected = model(ids, noise=unflipped, diffusion=diffusion).slot_loss
        torch.testing.assert_close(found[:, n], expected[:, n], rtol=1e-5, atol=1e-6)
    plain = model(IDS, noise=unflipped, diffusion=diffusion).slot_loss
    assert torch.equal(found[:, 0], plain[:, 0])
    assert not torch.isclose(found[:, 1:], plain[:, 1:]).all(-1).any()


def test_flips_need_codes(build: Build) -> None:
    with pytest.raises(ConfigError, match="it needs a model with input = codes"):
        build()(IDS, noise=noise_for(DiffusionConfig(flip_share=0.1)))
    given = ["model.input=codes", "finetune.diffusion.flip_share=0.1"]
    assert math.isclose(configure("tiny", given).finetune.diffusion.flip_share, 0.1)
    with pytest.raises(ConfigError, match=r"finetune\.diffusion\.flip_share = 0\.1 needs model\.input = codes"):
        configure("tiny", given[1:])
