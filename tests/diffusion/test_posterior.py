"""The posterior of bit heads against a brute force over all real tokens."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TablePosterior

from bitlm.codes import encode
from bitlm.diffusion.posterior import BitPosterior


def drawn(B: int, seed: int, spread: float, shape: tuple[int, int] = (3, 4)) -> torch.Tensor:
    return spread * torch.randn(*shape, B, generator=torch.Generator().manual_seed(seed))


def table(logits: torch.Tensor, V: int) -> TablePosterior:
    """p(y) ∝ exp(½ φ(y)·ℓ) over the V real tokens, written out."""
    B = logits.shape[-1]
    scores = (logits.double()[..., None, :] * encode(torch.arange(V), B).double()).sum(-1) / 2
    return TablePosterior(scores.log_softmax(-1), B)


sizes = st.integers(1, 9).flatmap(lambda B: st.tuples(st.just(B), st.integers(1, 2**B)))


@given(size=sizes, seed=st.integers(0, 1000), spread=st.sampled_from([0.0, 0.3, 3.0, 50.0]), scale=st.floats(0, 5))
@settings(deadline=None, max_examples=150)
def test_token_probabilities_are_those_of_a_brute_force(size, seed, spread, scale) -> None:
    B, V = size
    logits = drawn(B, seed, spread, (4, 3))
    ours, plain = BitPosterior(logits, V), table(logits, V)
    every = torch.arange(V).expand(4, 3, V)
    found = torch.stack([ours.log_prob(every[..., y]) for y in range(V)], dim=-1)
    torch.testing.assert_close(found.double(), plain.log_p, rtol=1e-6, atol=1e-6)
    ids, log_p = ours.best()
    assert torch.equal(ours.mode(), ids)
    torch.testing.assert_close(log_p.double(), plain.log_p.amax(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plain.log_prob(ids), log_p, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.log_odds(), logits)
    guided = ours.guided(scale)
    expected = plain.guided(scale).log_p
    found = torch.stack([guided.log_prob(every[:2, :, y]) for y in range(V)], dim=-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@given(
    size=sizes,
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 0.3, 3.0, 800.0]),
    temperature=st.sampled_from([0.1, 1.0, 2.5]),
)
@settings(deadline=None, max_examples=150)
def test_a_sample_is_where_the_distribution_function_passes_its_number(size, seed, spread, temperature) -> None:
    B, V = size
    logits = drawn(B, seed, spread)
    uniform = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    uniform[0] = torch.tensor([0.0, 0.5, 0.25, 1 - 2.0**-53], dtype=torch.float64)
    ids = BitPosterior(logits, V).sample(uniform, temperature)
    assert ids.dtype == torch.int64
    assert ((ids >= 0) & (ids < V)).all()
    cumulative = (table(logits, V).log_p / temperature).softmax(-1).cumsum(-1)
    above = cumulative.gather(-1, ids[..., None])[..., 0]
    below = torch.where(ids > 0, cumulative.gather(-1, (ids[..., None] - 1).clamp(min=0))[..., 0], 0.0)
    assert (below - 1e-12 <= uniform).all()
    assert (uniform <= above + 1e-12).all()


def test_equal_bits_give_the_id_at_the_share_of_the_number() -> None:
    """By hand: ℓ = 0 is uniform over the real tokens, so u picks ⌊u·V⌋."""
    V = 1000
    uniform = (torch.arange(V, dtype=torch.float64)[None] + 0.5) / V
    assert torch.equal(BitPosterior(torch.zeros(1, V, 10), V).sample(uniform), torch.arange(V)[None])


@pytest.mark.parametrize("V", [5, 8])
def test_certain_bits_are_certain_tokens(V: int) -> None:
    """Log-odds as large as those of clean slots; a certain void corner is the nearest real token."""
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        logits = torch.tensor(signs)[None, None] * torch.tensor([4e8, 3e8, 2e8])
        posterior, plain = BitPosterior(logits, V), table(logits, V)
        ids, log_p = posterior.best()
        assert torch.equal(ids, plain.best()[0])
        assert log_p.item() == 0
        for u in (0.0, 0.5, 1 - 2.0**-53):
            assert torch.equal(posterior.sample(torch.full((1, 1), u, dtype=torch.float64)), ids)


def test_a_large_vocabulary_takes_no_table() -> None:
    """V = 151,669 of 2^18: log p sums to one over all tokens, and the mode is the largest of them."""
    V, B = 151_669, 18
    logits = drawn(B, 3, 2.0, (1, 1))
    posterior = BitPosterior(logits.expand(1, V, B), V)
    log_p = posterior.log_prob(torch.arange(V)[None])
    assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    ids, best = BitPosterior(logits, V).best()
    assert ids.item() == int(log_p.argmax())
    assert best.item() == pytest.approx(float(log_p.max()), abs=1e-6)
