"""The codebook's posterior against numpy: log p of all V tokens, one by one, and whatever is read from it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlm.codes import encode
from bitlm.model import BitLMForCausalLM, codebook, token_posterior
from bitlm.model.state import BlockState, HeadConstants
from bitlm.model.token_posterior import TokenPosterior

Build = Callable[..., BitLMForCausalLM]
M, B, D, V, RANK, KEPT = 4, 6, 32, 50, 5, 7  # of the small models; tokens that a sampler keeps
N = 6  # blocks; with guidance three conditional ones and three null ones
HELD = ["scores", "chunks", "likeliest"]


@dataclass
class Case:
    """A posterior of N blocks, and its log p [N, M, V] by hand: -∞ for tokens that are not kept."""

    posterior: TokenPosterior
    log_p: np.ndarray


def normalized(scores: np.ndarray) -> np.ndarray:
    highest = scores.max(-1, keepdims=True)
    return scores - highest - np.log(np.exp(scores - highest).sum(-1, keepdims=True))


def made(model: BitLMForCausalLM, held: str, told: bool, steep: float = 1.0) -> Case:
    """From a random query and, if ``told``, evidence on the bits and a correction."""
    model.set_unigram(torch.arange(V) ** 2)
    book = model.head.readout.codebook
    generator = torch.Generator().manual_seed(1)
    query, evidence, correction = (torch.randn(N, M, width, generator=generator) for width in (D, B, RANK))
    block = BlockState(query, query=steep * query)
    E = model.model.embed_tokens.weight[:V].double().numpy()
    R = E @ book.low_rank.weight.double().numpy().T
    counts = np.arange(V) ** 2 + 1.0
    scores = steep * query.double().numpy() @ E.T + np.log(counts / counts.sum())
    constants = model.head_constants()
    if held == "scores":
        block = book.add_scores(block, constants)
        assert block.scores is not None
    elif held == "likeliest":
        block = book.keep_likeliest(block, constants, KEPT)
        # As in sampling, both branches have the tokens that are likeliest for the first one.
        block = replace(block, **{name: torch.cat([t[:3], t[:3]]) for name, t in block.own_tokens().items()})
        ids = np.argsort(np.concatenate([scores[:3]] * 2), -1)[..., :-KEPT]
        block = replace(block, scores=codebook.token_scores(steep * query, constants).gather(-1, block.tokens))
        np.put_along_axis(scores, ids, -np.inf, -1)
    if told:
        codes = encode(torch.arange(V), B).double().numpy()
        scores = scores + correction.double().numpy() @ R.T + evidence.double().numpy() @ codes.T / 2
    given = (evidence, correction) if told else ()
    return Case(TokenPosterior(book, constants, block, *given), normalized(scores))


@pytest.fixture(params=HELD)
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "chunks":
        monkeypatch.setattr(codebook, "scores_held", lambda device: 3 * V)
    return request.param


def case(build: Build, held: str, told: bool, scale: float | None) -> Case:
    with torch.no_grad():
        found = made(build(denoiser="codebook", codebook_rank=RANK), held, told)
    if scale is None:
        return found
    conditional, null = found.log_p[:3], found.log_p[3:]
    with np.errstate(invalid="ignore"):  # -∞ - -∞ where both branches lack the token
        mixed = np.where(np.isinf(null), -np.inf, null + scale * (conditional - null))
    return Case(found.posterior.guided(scale), normalized(mixed))


every_case = pytest.mark.parametrize(("told", "scale"), [(True, None), (False, None), (True, 2.5), (False, 0.0)])


@every_case
@torch.no_grad()
def test_log_p_of_every_token(build: Build, held: str, told: bool, scale: float | None) -> None:
    found = case(build, held, told, scale)
    n = len(found.log_p)
    got = torch.stack([found.posterior.log_prob(torch.full((n, M), y)) for y in range(V)], dim=-1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.from_numpy(found.log_p), rtol=1e-4, atol=1e-4)
    assert bool(got.isinf().any()) == (held == "likeliest")


@every_case
@torch.no_grad()
def test_the_most_probable_token_and_the_bits(build: Build, held: str, told: bool, scale: float | None) -> None:
    found = case(build, held, told, scale)
    ids, log_p = found.posterior.best()
    assert torch.equal(found.posterior.mode(), ids)
    np.testing.assert_array_equal(ids.numpy(), found.log_p.argmax(-1))
    np.testing.assert_allclose(log_p.numpy(), found.log_p.max(-1), rtol=1e-4, atol=1e-4)
    one = np.array([[(y >> B - 1 - bit) & 1 for bit in range(B)] for y in range(V)])
    p = np.exp(found.log_p)
    expected = p @ one - p @ (1 - one)  # the mean code; log-odds of near-certain bits are beyond float32
    np.testing.assert_allclose(np.tanh(found.posterior.log_odds().numpy() / 2), expected, rtol=1e-4, atol=1e-4)


@every_case
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@torch.no_grad()
def test_a_sample_inverts_the_distribution_function_in_the_order_of_ids(
    build: Build, held: str, told: bool, scale: float | None, temperature: float
) -> None:
    found = case(build, held, told, scale)
    cumulative = np.exp(normalized(found.log_p / temperature)).cumsum(-1)
    numbers = [0.0, 1e-9, 0.123, 0.5, 0.987, 1 - 2.0**-53]
    for u in numbers:
        ids = found.posterior.sample(torch.full((len(found.log_p), M), u, dtype=torch.float64), temperature).numpy()
        at = np.take_along_axis(cumulative, ids[..., None], -1)[..., 0]
        below = at - np.exp(np.take_along_axis(normalized(found.log_p / temperature), ids[..., None], -1))[..., 0]
        assert (below - 1e-4 <= u).all()
        assert (u <= at + 1e-4).all()
        assert not np.isinf(np.take_along_axis(found.log_p, ids[..., None], -1)).any()


@torch.no_grad()
def test_every_slot_has_a_number_of_its_own(build: Build) -> None:
    found = case(build, "scores", True, None)
    uniform = torch.rand(N, M, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (np.exp(found.log_p).cumsum(-1) <= uniform.numpy()[..., None]).sum(-1)
    np.testing.assert_array_equal(found.posterior.sample(uniform).numpy(), expected)
    assert (expected != found.log_p.argmax(-1)).any()


@torch.no_grad()
def test_candidates_that_hold_all_the_mass_are_exact(build: Build) -> None:
    model = build(denoiser="codebook", codebook_rank=RANK)
    whole, few = (made(model, held, False, steep=30.0) for held in ("scores", "likeliest"))
    likeliest = np.sort(np.exp(whole.log_p[:3]), -1)[..., -KEPT:].sum(-1)
    assert (likeliest > 1 - 1e-6).all()
    assert (whole.log_p[:3].max(-1) < -1e-3).any()  # not one token alone
    (ids, log_p), (other_ids, other_log_p) = whole.posterior.best(), few.posterior.best()
    assert torch.equal(ids[:3], other_ids[:3])
    torch.testing.assert_close(log_p[:3], other_log_p[:3], rtol=0, atol=1e-5)
    torch.testing.assert_close(few.posterior.log_prob(ids)[:3], log_p[:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 2.5])
def test_never_more_scores_than_a_chunk(build: Build, monkeypatch: pytest.MonkeyPatch, scale: float | None) -> None:
    """Of 6·4·V, in the forward pass and in what the backward pass computes again; the gradients are the same."""
    model = build(denoiser="codebook", codebook_rank=RANK)
    model.set_unigram(torch.arange(V))
    generator = torch.Generator().manual_seed(1)
    query, evidence, correction = (torch.randn(N, M, width, generator=generator) for width in (D, B, RANK))
    ids = torch.randint(0, V, (N, M), generator=generator)

    def run() -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (query, evidence, correction)]
        block = BlockState(query, query=leaves[0])
        posterior = TokenPosterior(model.head.readout.codebook, model.head_constants(), block, *leaves[1:])
        posterior = posterior if scale is None else posterior.guided(scale)
        log_p = posterior.log_prob(ids if scale is None else ids[:3])
        log_p.sum().backward()
        return [log_p.detach(), *(leaf.grad for leaf in leaves)]

    monkeypatch.setattr(codebook, "scores_held", lambda device: 2**23)
    whole, sizes, scores = run(), [], codebook.token_scores

    def watched(query: Tensor, constants: HeadConstants) -> Tensor:
        found = scores(query, constants)
        sizes.append(found.numel())
        return found

    for module in (codebook, token_posterior):
        monkeypatch.setattr(module, "token_scores", watched)
    monkeypatch.setattr(codebook, "scores_held", lambda device: 3 * V)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert max(sizes, default=0) == (3 * V if scale is not None else 0)  # log p alone needs no scores of all tokens
