"""The codebook against a softmax over the vocabulary that is written out in numpy, token by token."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_models import log_odds, prepare, prepare_sampling, token_nll
from torch import Tensor

from bitlm.diffusion.loss import to_codes
from bitlm.errors import ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM, codebook
from bitlm.model.state import BlockState, HeadConstants

Build = Callable[..., BitLMForCausalLM]
M, B, D, V = 4, 6, 32, 50  # of the small models
CODES = np.array([[2.0 * int(bit) - 1 for bit in format(y, f"0{B}b")] for y in range(V)])
VARIANTS = [("norm", None), ("direct", None), ("direct", 5)]
every_variant = pytest.mark.parametrize(("path", "rank"), VARIANTS)


def built(build: Build, path: str = "norm", rank: int | None = None, **options) -> BitLMForCausalLM:
    model = build(**{"denoiser": "codebook", "context_path": path, "codebook_rank": rank, **options})
    model.set_unigram(torch.arange(V) ** 2)
    # R̄ is √R times as long as a row: read with weights of the others' size, it would make the random head too steep for
    # float32.
    for reader in filter(None, (model.head.readout.codebook.feature, model.head.readout.codebook.coupling)):
        reader.weight.data.div_((rank or D) ** 0.5)
    return model


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    noisy, context = (torch.randn(n, M, width, generator=generator) for width in (B, D))
    return noisy, torch.rand(n, M, generator=generator) * 0.6 + 0.3, context


def answers(model: BitLMForCausalLM, noisy: Tensor, t: Tensor, prepared: BlockState, likely: np.ndarray) -> np.ndarray:
    """a_i = U·h_i, as the head's last map gives it, + Σ_j T_{j-i}·R̄_j for these R̄ [n, m, R]."""
    T = weights(model)["head.readout.codebook.coupling.weight"].reshape(-1, 2 * M - 1, likely.shape[-1])
    coupled = [[sum(T[:, j - i + M - 1] @ block[j] for j in range(M)) for i in range(M)] for block in likely]
    return outputs(model, noisy, t, prepared) + np.array(coupled)


def outputs(model: BitLMForCausalLM, noisy: Tensor, t: Tensor, prepared: BlockState) -> np.ndarray:
    seen = []
    hook = model.head.readout.output.register_forward_hook(lambda module, given, found: seen.append(found))
    log_odds(model, noisy, t, prepared)
    hook.remove()
    return seen[0].double().numpy()


def likely_rows(model: BitLMForCausalLM, p: np.ndarray) -> np.ndarray:
    """R̄ = √R·Σ_y p(y)·R_y."""
    rows = table(weights(model))
    return np.sqrt(rows.shape[1]) * (p @ rows)


def table(given: dict[str, np.ndarray]) -> np.ndarray:
    """R [V, R]."""
    E = given["model.embed_tokens.weight"][:V]
    name = "head.readout.codebook.low_rank.weight"
    return E @ given[name].T if name in given else E


def weights(model: BitLMForCausalLM) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def probabilities(model: BitLMForCausalLM, noisy: Tensor, t: Tensor, context: Tensor, answer: np.ndarray) -> np.ndarray:
    """p [n, m, V], one token's score at a time."""
    given = weights(model)
    E, W = given["model.embed_tokens.weight"][:V], given["head.readout.codebook.query.weight"]
    R = table(given)
    counts = np.arange(V) ** 2 + 1
    p = np.empty((len(noisy), M, V))
    for n in range(len(noisy)):
        flat = context[n].double().numpy().reshape(-1)
        query = (W @ flat).reshape(M, D)
        prior = np.zeros(M * B)
        if "head.context_log_odds.weight" in given:
            prior = given["head.context_log_odds.weight"] @ flat + given["head.context_log_odds.bias"]
        for slot, bits in enumerate(prior.reshape(M, B)):
            level = t[n, slot].item()
            for y in range(V):
                evidence = (1 - level) / level**2 * float(noisy[n, slot].double().numpy() @ CODES[y])
                p[n, slot, y] = (
                    E[y] @ query[slot]
                    + R[y] @ answer[n, slot]
                    + np.log(counts[y] / counts.sum())
                    + evidence
                    + bits @ CODES[y] / 2
                )
            p[n, slot] = np.exp(p[n, slot] - p[n, slot].max())
            p[n, slot] /= p[n, slot].sum()
    return p


@every_variant
@torch.no_grad()
def test_logits_and_token_probabilities_are_the_brute_force_ones(build: Build, path: str, rank: int | None) -> None:
    model = built(build, path, rank)
    noisy, t, context = inputs(3)
    prepared = prepare(model, context)
    likely = likely_rows(model, probabilities(model, noisy, t, context, np.zeros((3, M, rank or D))))
    p = probabilities(model, noisy, t, context, answers(model, noisy, t, prepared, likely))
    assert ((p > 0.02).sum(-1) > 1).any()  # not all decided
    torch.testing.assert_close(
        to_codes(log_odds(model, noisy, t, prepared)).double(), torch.from_numpy(p @ CODES), rtol=1e-4, atol=1e-4
    )
    targets = torch.randint(0, V, (3, M), generator=torch.Generator().manual_seed(0))
    expected = -torch.from_numpy(p).log().gather(-1, targets[..., None])[..., 0]
    got = token_nll(model, noisy, t, prepared, targets)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["norm", "direct"])
@torch.no_grad()
def test_prior_adds_the_networks_output_to_the_log_odds_of_the_mean_code(build: Build, path: str) -> None:
    model = built(build, path, denoiser="codebook_prior")
    noisy, t, context = inputs(3)
    prepared = prepare(model, context)
    p = probabilities(model, noisy, t, context, np.zeros((3, M, D)))
    one, zero = p @ (CODES > 0), p @ (CODES < 0)
    expected = np.log(one) - np.log(zero) + outputs(model, noisy, t, prepared)
    got = log_odds(model, noisy, t, prepared)
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


@every_variant
@torch.no_grad()
def test_the_network_is_shown_the_mean_row_under_p_without_its_answer(
    build: Build, path: str, rank: int | None
) -> None:
    model = built(build, path, rank)
    noisy, t, context = inputs(2)
    seen = []
    model.head.readout.codebook.feature.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    log_odds(model, noisy, t, prepare(model, context))
    p = probabilities(model, noisy, t, context, np.zeros((2, M, rank or D)))
    expected = torch.from_numpy(likely_rows(model, p))
    torch.testing.assert_close(seen[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_context_learns_from_what_the_network_and_the_other_slots_make_of_it(build: Build) -> None:
    model = built(build)
    seen = []
    model.head.readout.codebook.feature.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    noisy, t, context = inputs(2)
    log_odds(model, noisy, t, prepare(model, context))
    seen[0].square().sum().backward()
    assert model.head.readout.codebook.query.weight.grad.abs().max() > 0
    assert model.model.embed_tokens.weight.grad.abs().max() > 0


@torch.no_grad()
def test_coupling_alone_tells_a_slot_of_its_neighbours(build: Build) -> None:
    """A token at distance -1 that raises one other: what the head cannot say while its gates are shut."""
    model = built(build)
    for parameter in (*model.head.network.modulations.parameters(), *model.head.readout.output.parameters()):
        parameter.zero_()
    E = model.model.embed_tokens.weight
    first, second = 7, 30
    T = model.head.readout.codebook.coupling.weight.zero_().view(D, 2 * M - 1, D)
    T[:, M - 2] = 3 * torch.outer(E[second], E[first]) / (E[first].norm() * E[second].norm()) ** 2
    clean = torch.tensor([[first, first, 0, 0]])
    noisy = torch.from_numpy(CODES[clean]).float()
    t = torch.tensor([[0.05, 1.0, 1.0, 1.0]])
    nll = token_nll(model, noisy, t, prepare(model, torch.zeros(1, M, D)), torch.full((1, M), second))
    T.zero_()
    without = token_nll(model, noisy, t, prepare(model, torch.zeros(1, M, D)), torch.full((1, M), second))
    assert nll[0, 1] < without[0, 1] - 1


@torch.no_grad()
def test_a_fresh_codebook_is_the_tied_softmax_of_the_last_vector_times_the_unigram() -> None:
    torch.manual_seed(0)
    model = BitLMForCausalLM(
        BitLMConfig(diffusion_head={"denoiser": "codebook", "num_layers": 2, "head_dim": 16}, vocab_size=200)
    )
    counts = torch.randint(0, 1000, (200,))
    model.set_unigram(counts)
    context = torch.randn(2, 4, 64)
    targets = torch.randint(0, 200, (2, 4))
    got = token_nll(model, torch.randn(2, 4, 8), torch.ones(2, 1), prepare(model, context), targets)
    scores = context[:, -1].double() @ model.model.embed_tokens.weight[:200].double().T + (counts + 1.0).log().double()
    expected = -scores.log_softmax(-1)[:, None].expand(-1, 4, -1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("denoiser", "path", "rank"),
    [*(("codebook", *variant) for variant in VARIANTS), ("codebook_prior", "direct", None)],
)
def test_chunks_change_nothing(
    build: Build, monkeypatch: pytest.MonkeyPatch, denoiser: str, path: str, rank: int | None
) -> None:
    model = built(build, path, rank, denoiser=denoiser)
    noisy, t, context = inputs(5)
    targets = torch.randint(0, V, (5, M), generator=torch.Generator().manual_seed(0))

    def run() -> list[Tensor]:
        model.zero_grad()
        prepared = prepare(model, context)
        found = [log_odds(model, noisy, t, prepared)]
        if denoiser == "codebook":
            found.append(token_nll(model, noisy, t, prepared, targets))
        sum(each.tanh().sum() for each in found).backward()
        return found + [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = run()
    widths = []
    monkeypatch.setattr(codebook, "scores_held", lambda device: 3 * V)
    scores = codebook.token_scores

    def watched(query: Tensor, constants: HeadConstants) -> Tensor:
        found = scores(query, constants)
        widths.append(found.numel())
        return found

    monkeypatch.setattr(codebook, "token_scores", watched)
    for one, other in zip(whole, run(), strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()
    assert max(widths) == 3 * V  # of 20 V scores
    assert len(widths) > 7


@every_variant
@torch.no_grad()
def test_sampling_is_exact_among_the_likeliest_tokens(build: Build, path: str, rank: int | None) -> None:
    model = built(build, path, rank, codebook_candidates=7)
    noisy, t, context = inputs(3)
    null = model.head.null_context[None].expand(3, -1, -1)
    prepared = prepare_sampling(model, context, guided=True)
    twice = [tensor.repeat(2, *(1 for _ in tensor.shape[1:])) for tensor in (noisy, t)]
    got = to_codes(log_odds(model, *twice, prepared))
    # At t = 1 nothing is told of the bits: what is likeliest there is likeliest given C.
    nothing = np.zeros((3, M, rank or D))
    kept = probabilities(model, noisy, torch.ones(3, M), context, nothing).argsort(-1)[..., -7:]

    def among(given: Tensor, answer: np.ndarray) -> np.ndarray:
        p = probabilities(model, noisy, t, given, answer)
        found = np.zeros_like(p)
        np.put_along_axis(found, kept, np.take_along_axis(p, kept, -1), -1)
        return found / found.sum(-1, keepdims=True)

    likely = np.concatenate([likely_rows(model, among(given, nothing)) for given in (context, null)])
    answer = answers(model, *twice, prepared, likely)
    for half, given in ((slice(0, 3), context), (slice(3, 6), null)):
        expected = torch.from_numpy(among(given, answer[half]) @ CODES)
        torch.testing.assert_close(got[half].double(), expected, rtol=1e-4, atol=1e-4)


def test_token_loss_gradients_in_float64() -> None:
    torch.manual_seed(0)
    embedding, rows, codes = (torch.randn(9, width, dtype=torch.float64) for width in (4, 3, 5))
    query, evidence, correction = (
        torch.randn(6, width, dtype=torch.float64, requires_grad=True) for width in (4, 5, 3)
    )
    targets = torch.randint(0, 9, (6,))

    def loss(query: Tensor, evidence: Tensor, correction: Tensor) -> Tensor:
        log_p = codebook.posterior_scores(query @ embedding.T, rows, codes, evidence, correction).log_softmax(-1)
        return -log_p.gather(-1, targets[:, None])

    assert torch.autograd.gradcheck(loss, (query, evidence, correction))


def test_log_odds_gradients_in_float64() -> None:
    torch.manual_seed(0)
    rows, codes = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64).sign()
    scores, evidence, correction = (
        torch.randn(6, width, dtype=torch.float64, requires_grad=True) for width in (9, 5, 3)
    )

    def bits(scores: Tensor, evidence: Tensor, correction: Tensor) -> Tensor:
        log_p = codebook.posterior_scores(scores, rows, codes, evidence, correction)
        return codebook.bit_log_odds(log_p, codes)

    assert torch.autograd.gradcheck(bits, (scores, evidence, correction))


def test_unigram_counts_are_for_codebooks_of_this_vocabulary(build: Build) -> None:
    model = build(denoiser="codebook")
    counts = torch.arange(V)
    model.set_unigram(counts)
    expected = (counts.double() + 1) / (counts.double() + 1).sum()
    torch.testing.assert_close(model.head.readout.codebook.log_unigram.exp().double(), expected, rtol=1e-5, atol=0)
    with pytest.raises(ConfigError, match="counts of 49 tokens for a vocabulary of 50"):
        model.set_unigram(counts[1:])
    with pytest.raises(ConfigError, match="no codebook"):
        build().set_unigram(counts)
