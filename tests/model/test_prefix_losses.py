"""The losses behind clean prefixes, of further blocks and of single tokens, against loops that cut each row by hand."""

from collections.abc import Callable

import pytest
import torch
from small_models import prepare
from torch import Tensor

from bitlm.codes import encode
from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.errors import ConfigError
from bitlm.model import BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
M, B, L, V = 4, 6, 16, 50
CAUSAL = {"denoiser": "codebook", "attention": "causal", "context_path": "attention", "mask": "causal"}
HEADS = [
    CAUSAL,
    {"denoiser": "codebook", "attention": "causal", "codebook_rank": 5, "context_path": "direct", "mask": "causal"},
    {"denoiser": "codebook_prior", "attention": "causal", "context_path": "attention", "mask": "causal"},
    {"attention": "causal", "mask": "causal", "slot_embedding": True},
]
FURTHER = DiffusionConfig(
    loss="token",
    chain_slots=2,
    block_offsets=3,
    noise_share=0.5,
    noise_draws=2,
    slot_noise=0.5,
    next_token_weight=0.3,
    condition_dropout=0.4,
)


def tokens(b: int = 3) -> Tensor:
    return torch.randint(0, V, (b, L), generator=torch.Generator().manual_seed(1))


def noise_for(diffusion: DiffusionConfig, b: int = 3) -> Noise:
    return block_noise(NoiseKeys(5, range(b), [0] * b), BlockShape(L // M, M, B), diffusion)


def of_row(noise: Noise, row: int) -> Noise:
    return Noise(*(tensor[row : row + 1] for tensor in (noise.eps, noise.t, noise.drop, noise.learn, noise.offsets)))


def nats_behind(model: BitLMForCausalLM, context: Tensor, ids: Tensor, prefix: int) -> Tensor:
    """-log p [m] of the slots of one block, by a call of the head with the first ``prefix`` of them clean."""
    t = torch.tensor([[0.0] * prefix + [1.0] * (M - prefix)])
    noisy = torch.where(t[..., None] == 0, encode(ids, B), torch.randn(1, M, B))
    return -model.head(noisy, t, model.head_constants(), prepare(model, context[None])).log_prob(ids[None])[0]


def chain_by_hand(model: BitLMForCausalLM, context: Tensor, ids: Tensor, ahead: int) -> Tensor:
    """[m]: the mean over the prefixes that have a slot among the ``ahead`` next ones."""
    behind = [nats_behind(model, context, ids, prefix) for prefix in range(M)]
    return torch.stack(
        [torch.stack([behind[p][slot] for p in range(max(0, slot - ahead + 1), slot + 1)]).mean() for slot in range(M)]
    )


def states_behind(model: BitLMForCausalLM, ids: Tensor) -> Tensor:
    """The last m states of a causal Qwen3 that has read the start block and these first tokens of a row, [m, D]."""
    embedded = model.model.embed_tokens(ids)
    if model.slot_embedding is not None:
        embedded = embedded + model.slot_embedding[torch.arange(len(ids)) % M]
    fed = torch.cat([model.start_block, embedded])[None]
    return model.model(inputs_embeds=fed).last_hidden_state[0, -M:]


def made(build: Build, options: dict) -> BitLMForCausalLM:
    model = build(**options)
    if model.config.has_codebook:
        model.set_unigram(torch.arange(V) ** 2)
    return model


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("ahead", [1, 2, 4])
@torch.no_grad()
def test_the_chain_is_a_mean_over_prefixes(build: Build, options: dict, ahead: int) -> None:
    model, ids = made(build, options), tokens()
    diffusion = DiffusionConfig(loss="token", chain_slots=ahead, noise_share=0, condition_dropout=0.4)
    noise = noise_for(diffusion)
    assert noise.eps.shape == (3, 4, 0, M, B)
    assert 0 < noise.drop.sum() < noise.drop.numel()
    output = model(ids, noise=noise, diffusion=diffusion)
    assert output.slot_loss.shape == (3, 4, 1, M)
    contexts = model.compute_context(ids)
    for row in range(3):
        for n in range(4):
            context = model.head.null_context if noise.drop[row, n] else contexts[row, n]
            expected = chain_by_hand(model, context, ids[row, M * n : M * n + M], ahead)
            torch.testing.assert_close(output.slot_loss[row, n, 0], expected, rtol=1e-3, atol=1e-4)
    assert output.loss.item() == pytest.approx(output.slot_loss.mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["token", "velocity"])
@torch.no_grad()
def test_the_draws_of_the_blocks_that_learn_from_them_are_added(build: Build, loss: str) -> None:
    model, ids = made(build, CAUSAL), tokens()
    both = DiffusionConfig(loss=loss, chain_slots=1, noise_share=0.5, noise_draws=3, block_offsets=2)
    noise = noise_for(both)
    assert 0 < noise.learn.sum() < noise.learn.numel()
    found = model(ids, noise=noise, diffusion=both).slot_loss
    draws = model(ids, noise=without_offsets(noise), diffusion=DiffusionConfig(loss=loss)).slot_loss
    no_draws = Noise(noise.eps[:, :, :0], noise.t[:, :, :0], noise.drop, noise.learn, noise.offsets[:, :0])
    chain = model(ids, noise=no_draws, diffusion=DiffusionConfig(chain_slots=1)).slot_loss
    # The chain is one of those at two offsets, the draws count in full.
    expected = chain[:, :, 0] / 2 + draws.mean(2) * noise.learn[..., None]
    torch.testing.assert_close(found[:, :, 0], expected, rtol=1e-3, atol=1e-3)


def without_offsets(noise: Noise) -> Noise:
    return Noise(noise.eps, noise.t, noise.drop, noise.learn, noise.offsets[:, :0])


@pytest.mark.parametrize("options", HEADS)
@torch.no_grad()
def test_further_blocks_and_tokens_are_those_of_rows_cut_by_hand(build: Build, options: dict) -> None:
    """With loss on some tokens only."""
    model, ids = made(build, options), tokens()
    weight = 0.7 if options.get("denoiser") == "codebook" else 0.0
    diffusion = DiffusionConfig(
        loss="token", chain_slots=2, noise_share=0, block_offsets=3, next_token_weight=weight, condition_dropout=0
    )
    noise = noise_for(diffusion)
    chosen = torch.rand(3, L, generator=torch.Generator().manual_seed(2)) < 0.6
    expected = 0.0
    for row in range(3):
        for offset in [0, *noise.offsets[row].tolist()]:
            for start in range(offset, L - M + 1, M):
                block = slice(start, start + M)
                nats = chain_by_hand(model, states_behind(model, ids[row, :start]), ids[row, block], 2)
                expected += float(nats[chosen[row, block]].sum()) / 3
        for place in range(L - M):
            if weight and chosen[row, place] and place % M:
                state = states_behind(model, ids[row, :place])[-1].double()
                scores = model.model.embed_tokens.weight[:V].double() @ state + (torch.arange(V) ** 2 + 1.0).log()
                expected -= weight * float(scores.log_softmax(-1)[ids[row, place]])
    output = model(ids, noise=noise, loss_tokens=chosen, diffusion=diffusion)
    assert output.loss_sum.item() == pytest.approx(expected, rel=1e-4)
    assert output.loss_count == int(chosen.sum())
    assert output.loss.item() == pytest.approx(expected / int(chosen.sum()), rel=1e-4)


@pytest.mark.parametrize("left", [1, 4, 6])
@torch.no_grad()
def test_padding_takes_no_part(build: Build, left: int) -> None:
    """What stands under it does not matter, and a row padded by a whole block is the row alone."""
    model, ids = made(build, CAUSAL), tokens(1)
    noise = of_row(noise_for(FURTHER), 0)
    mask = torch.ones_like(ids)
    mask[:, :left] = 0
    junk = ids.clone()
    junk[:, :left] = (ids[:, :left] + 7) % V
    one, other = (model(given, mask, noise=noise, diffusion=FURTHER) for given in (ids, junk))
    assert one.loss_sum == other.loss_sum
    assert one.loss_count == L - -(-left // M) * M
    if left == M:
        later = Noise(*(part[:, 1:] for part in (noise.eps, noise.t, noise.drop, noise.learn)), noise.offsets)
        alone = model(ids[:, M:], noise=later, diffusion=FURTHER)
        # Blocks that begin at further offsets inside the padding are no blocks of the row alone either.
        assert one.loss_sum.item() == pytest.approx(alone.loss_sum.item(), rel=1e-4)


@pytest.mark.parametrize("options", HEADS[:2])
def test_rows_add_up_and_every_parameter_learns(build: Build, options: dict) -> None:
    model, ids, noise = made(build, options), tokens(), noise_for(FURTHER)
    chosen = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1], [0] * L, [1] * L]).bool()

    def run(rows: list[int]) -> tuple[float, int, list[Tensor]]:
        model.zero_grad()
        total = count = 0
        for row in [slice(i, i + 1) for i in rows] or [slice(None)]:
            part = Noise(*(each[row] for each in (noise.eps, noise.t, noise.drop, noise.learn, noise.offsets)))
            output = model(ids[row], noise=part, loss_tokens=chosen[row], diffusion=FURTHER)
            output.loss_sum.backward()
            total, count = total + output.loss_sum.item(), count + int(output.loss_count)
        return total, count, [parameter.grad.clone() for parameter in model.parameters()]

    whole, apart = run([]), run([0, 1, 2])
    assert apart[0] == pytest.approx(whole[0], rel=1e-5)
    assert apart[1] == whole[1] == 24
    for (name, _), one, other in zip(model.named_parameters(), whole[2], apart[2], strict=True):
        assert one.any(), name
        assert (one - other).norm() <= 1e-4 * one.norm(), name


@pytest.mark.parametrize(
    ("options", "diffusion", "message"),
    [
        ({}, {"chain_slots": 1}, "chain_slots = 1 needs diffusion_head.attention = causal"),
        (CAUSAL, {"chain_slots": 5}, "chain_slots = 5 is more than block_size = 4"),
        (CAUSAL, {"chain_slots": 1, "block_offsets": 5}, "block_offsets = 5 is more than block_size = 4"),
        (CAUSAL | {"mask": "block"}, {"chain_slots": 1, "block_offsets": 2}, "block_offsets = 2 needs mask = causal"),
        (CAUSAL, {"block_offsets": 2}, "block_offsets = 2 needs mask = causal and chain_slots of 1 or more"),
        (CAUSAL, {"noise_share": 0}, "noise_share = 0 needs chain_slots of 1 or more"),
        (CAUSAL | {"mask": "block"}, {"next_token_weight": 0.5}, "next_token_weight = 0.5 needs mask = causal and"),
        (HEADS[3], {"next_token_weight": 0.5}, "needs mask = causal and diffusion_head.denoiser = codebook"),
    ],
)
def test_losses_that_the_model_cannot_compute_are_refused(
    build: Build, options: dict, diffusion: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)(tokens(), diffusion=DiffusionConfig(**diffusion))
