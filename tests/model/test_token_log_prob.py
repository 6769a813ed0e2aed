"""log p of given tokens chunk by chunk, against a softmax of the whole matrix of scores."""

import pytest
import torch
from torch import Tensor

from bitlm.model import token_log_prob as module
from bitlm.model.token_log_prob import token_log_prob

K, V, ROWS = 7, 50, 64


def made(dtype: torch.dtype = torch.float64) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Three terms of 5, 3 and 2 columns, the tables with more rows than tokens; the last table learns nothing."""
    torch.manual_seed(0)
    tables = [torch.randn(ROWS, columns, dtype=dtype, requires_grad=columns > 2) for columns in (5, 3, 2)]
    vectors = [torch.randn(K, columns, dtype=dtype, requires_grad=True) for columns in (5, 3, 2)]
    return list(zip(tables, vectors, strict=True)), torch.randn(V, dtype=dtype), torch.randint(0, V, (K,))


def by_softmax(terms: list[tuple[Tensor, Tensor]], bias: Tensor, ids: Tensor) -> Tensor:
    scores = sum(vector @ table[:V].T for table, vector in terms) + bias
    return scores.log_softmax(-1)[torch.arange(K), ids]


def gradients(log_p: Tensor, terms: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    weights = torch.linspace(-1, 2, K, dtype=log_p.dtype)  # one slot counts for nothing, some against
    leaves = [tensor for term in terms for tensor in term if tensor.requires_grad]
    return list(torch.autograd.grad((weights * log_p).sum(), leaves))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 tokens, the last of 2."""
    monkeypatch.setattr(module, "CHUNK_TOKENS", 8)


@pytest.mark.parametrize("held", [0, K * V - 1, K * V], ids=["computed again", "one too many", "kept"])
def test_values_and_gradients_are_those_of_the_softmax(held: int) -> None:
    terms, bias, ids = made()
    ids[:3] = torch.tensor([0, 7, V - 1])  # the edges of chunks
    expected, got = by_softmax(terms, bias, ids), token_log_prob(terms, bias, ids, held)
    torch.testing.assert_close(got, expected)
    for one, other in zip(gradients(got, terms), gradients(expected, terms), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences() -> None:
    (term, *_), bias, ids = made()
    assert torch.autograd.gradcheck(lambda *pair: token_log_prob([pair], bias, ids, 0), term)


def test_what_is_kept_changes_no_bit() -> None:
    found = []
    for held in (0, K * V):
        terms, bias, ids = made(torch.float32)
        log_p = token_log_prob(terms, bias, ids, held)
        found.append([log_p, *gradients(log_p, terms)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("held", "products"), [(0, 14), (K * V, 7)])
def test_only_what_does_not_fit_is_computed_again(held: int, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, sizes = module._scores, []

    def watched(*given) -> Tensor:
        found = scores(*given)
        sizes.append(found.shape)
        return found

    monkeypatch.setattr(module, "_scores", watched)
    terms, bias, ids = made()
    token_log_prob(terms, bias, ids, held).sum().backward()
    assert len(sizes) == products
    assert max(sizes) == (K, 8)


def test_tables_are_read_in_the_precision_of_their_vectors_and_summed_in_float32() -> None:
    terms, bias, ids = made(torch.float32)
    (table, vector), exact, _ = terms
    mixed = [(table, vector.bfloat16()), exact]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = token_log_prob(mixed, bias, ids, 0)
    rounded = (vector.bfloat16() @ table.bfloat16().T).float()[:, :V]
    expected = (rounded + exact[1] @ exact[0][:V].T + bias).log_softmax(-1)[torch.arange(K), ids]
    torch.testing.assert_close(got, expected)
    found = torch.autograd.grad(got.sum(), table)[0]
    assert found.dtype == torch.float32
    assert found[V:].abs().max() == 0 < found[:V].abs().max()
