"""The loss of a whole batch against a loop over its blocks, one at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from small_models import log_odds, prepare, token_nll
from transformers import AutoConfig, AutoModelForCausalLM

from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.model import BitLMConfig, BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
HEADS = [
    {},
    {"head": "lm"},
    {"context_path": "direct", "slot_embedding": True},
    {"denoiser": "codebook_prior", "context_path": "direct"},
    {"denoiser": "codebook", "codebook_rank": 5},
]
BCE, TOKEN = DiffusionConfig(loss="bce"), DiffusionConfig(loss="token")


def loss_for(options: dict) -> DiffusionConfig:
    return TOKEN if options.get("denoiser") == "codebook" else BCE


def batch(b: int = 3, L: int = 16) -> torch.Tensor:
    return torch.randint(0, 49, (b, L), generator=torch.Generator().manual_seed(1))


def noise_for(b: int, N: int, draws: int = 3, slot_noise: float = 0.0) -> Noise:
    diffusion = DiffusionConfig(noise_draws=draws, condition_dropout=0.4, t_mean=-2.0, slot_noise=slot_noise)
    return block_noise(NoiseKeys(5, range(b), [0] * b), BlockShape(N, 4, 6), diffusion)


def loss_by_hand(model: BitLMForCausalLM, ids: torch.Tensor, noise: Noise, row: int, n: int, loss: str) -> float:
    """Mean over draws and bits for block n of a row, with the formulas written out per bit."""
    context = model.compute_context(ids)[row, n]
    if noise.drop[row, n]:
        context = model.head.null_context
    total = count = 0
    for draw in range(noise.t.shape[2]):
        t = noise.t[row, n, draw, 0].item()
        clean = [[2 * int(bit) - 1 for bit in format(int(token), "06b")] for token in ids[row, 4 * n : 4 * n + 4]]
        clean = torch.tensor(clean, dtype=torch.float32)
        noisy = (1 - t) * clean + t * noise.eps[row, n, draw]
        logits = log_odds(model, noisy[None], torch.tensor([[t]]), prepare(model, context[None]))[0]
        for logit, bit in zip(logits.flatten().tolist(), clean.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            error = (2 * p - 1) - bit
            if loss == "bce":
                total -= math.log(p if bit > 0 else 1 - p)
            else:
                total += (error / max(t, 0.05)) ** 2 if loss == "velocity" else error**2
            count += 1
    return total / count


@pytest.mark.parametrize("loss", ["velocity", "bce", "x"])
@torch.no_grad()
def test_loss_is_the_hand_loop(build: Build, loss: str) -> None:
    model = build()
    ids, noise = batch(2), noise_for(2, 4)
    assert 0 < noise.drop.sum() < noise.drop.numel()
    assert (noise.t < 0.05).any()  # the floor of the velocity loss is met
    by_hand = [[loss_by_hand(model, ids, noise, row, n, loss) for n in range(4)] for row in range(2)]
    expected = torch.tensor(by_hand)
    output = model(ids, noise=noise, diffusion=DiffusionConfig(loss=loss))
    torch.testing.assert_close(output.slot_loss.mean((-2, -1)), expected, rtol=2e-3, atol=1e-5)
    assert output.loss_count == 32
    assert output.loss_sum.item() == pytest.approx(4 * expected.sum().item(), rel=1e-3)
    assert output.loss.item() == pytest.approx(expected.mean().item(), rel=1e-3)


@torch.no_grad()
def test_token_loss_is_the_hand_loop(build: Build) -> None:
    model = build(denoiser="codebook")
    ids, noise = batch(2), noise_for(2, 4, slot_noise=0.5)
    output = model(ids, noise=noise, diffusion=TOKEN)
    assert output.slot_loss.shape == (2, 4, 3, 4)
    for row in range(2):
        for n in range(4):
            targets = ids[row, 4 * n : 4 * n + 4]
            context = model.head.null_context if noise.drop[row, n] else model.compute_context(ids)[row, n]
            for draw in range(3):
                t = noise.t[row, n, draw]
                clean = [[2 * int(bit) - 1 for bit in format(int(token), "06b")] for token in targets]
                noisy = torch.stack(
                    [
                        (1 - level) * torch.tensor(code) + level * eps
                        for level, code, eps in zip(t, clean, noise.eps[row, n, draw], strict=True)
                    ]
                )
                expected = token_nll(model, noisy[None], t[None], prepare(model, context[None]), targets[None])
                torch.testing.assert_close(output.slot_loss[row, n, draw], expected[0], rtol=1e-3, atol=1e-4)
    assert output.loss.item() == pytest.approx(output.slot_loss.mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["velocity", "bce", "x", "token"])
def test_equal_levels_in_all_slots_are_the_shared_level(build: Build, loss: str) -> None:
    ids, shared = batch(2), noise_for(2, 4)
    equal = Noise(shared.eps, shared.t.expand(-1, -1, -1, 4).contiguous(), shared.drop, shared.learn, shared.offsets)

    def run(noise: Noise) -> list[torch.Tensor]:
        model = build(denoiser="codebook", context_path="direct")
        output = model(ids, noise=noise, diffusion=DiffusionConfig(loss=loss))
        output.loss.backward()
        return [output.slot_loss, *(p.grad for p in model.parameters())]

    for one, other in zip(run(shared), run(equal), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize("options", HEADS)
def test_only_chosen_tokens_count_and_micro_batches_add_up(build: Build, options: dict) -> None:
    model, ids = build(**options), batch()
    m, noise = model.config.block_size, noise_for(3, 4)
    full = model(ids, noise=noise).slot_loss  # [b, N, draws, m]
    chosen = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1], [0] * 16, [1] * 16]).bool()
    output = model(ids, noise=noise, loss_tokens=chosen)
    total, losses = 0.0, torch.zeros_like(full)
    for row, position in chosen.nonzero().tolist():  # one token at a time
        place = row, position // m, slice(None), position % m
        losses[place] = full[place]
        total += full[place].mean().item()
    torch.testing.assert_close(output.slot_loss, losses, rtol=1e-4, atol=1e-4)
    assert output.in_loss.flatten(1).tolist() == chosen.tolist()
    assert output.loss_count == 24
    assert output.loss_sum.item() == pytest.approx(total, rel=1e-4)
    assert output.loss.item() == pytest.approx(total / 24, rel=1e-4)
    labels = ids.masked_fill(~chosen, -100)
    assert model(ids, noise=noise, labels=labels).loss_sum == output.loss_sum
    rows = [
        model(
            ids[i : i + 1],
            noise=Noise(*(x[i : i + 1] for x in (noise.eps, noise.t, noise.drop, noise.learn)), noise.offsets),
            loss_tokens=chosen[i : i + 1],
        )
        for i in range(3)
    ]
    assert rows[1].loss == 0
    assert sum(row.loss_count for row in rows) == 24
    assert sum(row.loss_sum.item() for row in rows) == pytest.approx(output.loss_sum.item(), rel=1e-5)


@pytest.mark.parametrize("options", HEADS)
def test_a_call_without_loss_tokens_still_trains(build: Build, options: dict) -> None:
    model, ids = build(**options), batch(1)
    noise = noise_for(1, 4) if model.config.head == "diffusion" else None
    nothing = torch.zeros(1, 16, dtype=torch.bool)
    output = model(ids, noise=noise, loss_tokens=nothing, diffusion=loss_for(options))
    output.loss_sum.backward()
    assert output.loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_blocks_with_padding_carry_no_loss(build: Build) -> None:
    model, noise = build(), noise_for(1, 4)
    mask = torch.tensor([[0] * 6 + [1] * 10])
    output = model(batch(1), attention_mask=mask, noise=noise)
    assert output.in_loss.tolist() == [[[False] * 4, [False] * 4, [True] * 4, [True] * 4]]


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_lm_loss_is_cross_entropy_over_the_real_ids(build: Build, tied: bool) -> None:
    model, ids = build(head="lm", tie_word_embeddings=tied), batch()
    weight = (model.model.embed_tokens if tied else model.head.output).weight
    hidden = model.compute_context(ids)[:, :, 0].double()
    expected = torch.zeros(3, 16, dtype=torch.float64)
    for row in range(3):
        for i in range(16):
            scores = [float(hidden[row, i] @ weight[token].double()) for token in range(50)]  # rows 50.. are filling
            expected[row, i] = math.log(sum(map(math.exp, scores))) - scores[ids[row, i]]
    output = model(ids)
    torch.testing.assert_close(output.slot_loss[..., 0, 0].double(), expected, rtol=0, atol=1e-5)
    assert output.loss.item() == pytest.approx(expected.mean().item(), abs=1e-5)


@pytest.mark.parametrize("options", HEADS)
def test_every_parameter_learns_and_the_end_token_too(build: Build, options: dict) -> None:
    model, ids = build(**options), batch()
    ids[:, 3] = model.config.end_token_id
    noise = noise_for(3, 4) if model.config.head == "diffusion" else None
    model(ids, noise=noise, diffusion=loss_for(options)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert model.model.embed_tokens.weight.grad[model.config.end_token_id].any()


def test_without_noise_the_loss_follows_torchs_seed(build: Build) -> None:
    model, ids = build(), batch()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(ids, labels=ids).loss.item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("options", HEADS)
def test_bfloat16_trains_close_to_float32(build: Build, options: dict) -> None:
    ids, loss = batch(), loss_for(options)
    noise = noise_for(3, 4) if options.get("head") != "lm" else None
    exact = build(**options)(ids, noise=noise, diffusion=loss).loss
    model = build(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(ids, noise=noise, diffusion=loss).loss
    half = build(**options).to(torch.bfloat16)(ids, noise=noise, diffusion=loss).loss
    for found in (cast, half):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(exact.item(), rel=0.05)
        found.backward()


def test_auto_classes_know_the_model() -> None:
    config = AutoConfig.for_model("bitlm", head="lm", block_size=1)
    assert isinstance(config, BitLMConfig)
    assert isinstance(AutoModelForCausalLM.from_config(config), BitLMForCausalLM)
