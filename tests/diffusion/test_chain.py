"""The chain: the entropy of a known source under its exact denoiser, the cross-entropy under another, and a real
model's by one call of the head for each slot."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from small_models import prepare
from toy import Mixture

from bitlm.batch import Batch
from bitlm.codes import encode
from bitlm.diffusion.chain import chain_nats, chain_per_token, prefix_noise
from bitlm.diffusion.noise import BlockShape, Stream, generator
from bitlm.errors import ConfigError
from bitlm.model import BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
M, B, N = 2, 3, 5
WORDS = torch.tensor([[[1, 1, 1], [1, 1, 1]], [[1, -1, 1], [-1, -1, 1]], [[1, 1, 1], [1, -1, -1]]]).float()
IDS = torch.tensor([[7, 7], [5, 1], [7, 4]])
SHARES = torch.tensor([0.6, 0.3, 0.1]).double()


class ToyModel:
    """Answers like the model's forward, with the exact posterior of a source that it believes in: in one pass where its
    attention is causal, else as the noise asks."""

    def __init__(self, believed: torch.Tensor, attention: str) -> None:
        self.source, self.training = Mixture(WORDS, believed), True
        head = SimpleNamespace(attention=attention)
        self.config = SimpleNamespace(head="diffusion", block_size=M, num_bits=B, diffusion_head=head)

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def __call__(self, ids, attention_mask, *, noise, loss_tokens, diffusion) -> SimpleNamespace:
        assert not self.training
        assert diffusion.loss == "token"
        b, causal = len(ids), self.config.diffusion_head.attention == "causal"
        assert (diffusion.chain_slots, noise.t.shape[2]) == ((1, 0) if causal else (0, M))
        assert not noise.drop.any()
        draws = noise.t if not causal else torch.ones(M, M).triu().expand(b, N, M, M)
        eps = noise.eps if not causal else torch.randn(b, N, M, M, B)
        clean = encode(ids, B).view(b, N, 1, M, B)
        noisy = (1 - draws[..., None]) * clean + draws[..., None] * eps
        posterior = self.source.posterior(noisy.flatten(0, 2), draws.flatten(0, 2))
        targets = ids.view(b, N, 1, M).expand(-1, -1, M, -1)
        loss = -posterior.log_prob(targets.flatten(0, 2)).view(b, N, M, M)
        if causal:
            loss = loss.diagonal(dim1=2, dim2=3)[:, :, None]
        in_loss = torch.ones(ids.shape, dtype=torch.bool) if loss_tokens is None else loss_tokens
        return SimpleNamespace(slot_loss=loss, in_loss=in_loss.view(b, N, M))


def sequences() -> Batch:
    """Ten blocks, each word as often as it is likely: means over them are expectations."""
    words = torch.tensor([0, 1, 0, 2, 0, 0, 1, 0, 1, 0])
    return Batch(IDS[words].view(2, N * M), None, None, [3, 4], [0, 0])


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_the_exact_denoiser_of_a_source_gives_its_entropy_and_another_the_cross_entropy(attention: str) -> None:
    model, batch = ToyModel(SHARES, attention), sequences()
    nats, tokens = chain_nats(model, batch, seed=1)
    assert model.training
    assert nats.dtype == torch.float64
    assert tokens.tolist() == [[N] * M] * 2
    entropy = -float((SHARES * SHARES.log()).sum())
    assert nats.sum().item() / 10 == pytest.approx(entropy, abs=1e-5)
    first = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))  # words 0 and 2 have the same first token
    assert (nats.sum(0) / 10).tolist() == pytest.approx([first, entropy - first], abs=1e-5)
    found = chain_per_token(model, [batch], seed=1)
    assert found.mean == pytest.approx(entropy / M, abs=1e-5)
    believed = torch.tensor([0.4, 0.3, 0.3]).double()
    damaged = chain_per_token(ToyModel(believed, attention), [batch], seed=1)
    assert damaged.mean == pytest.approx(-float((SHARES * believed.log()).sum()) / M, abs=1e-5)
    assert damaged.mean > found.mean + 0.05


def test_the_noise_of_a_prefix_is_the_same_for_all_prefixes_and_belongs_to_the_sequence() -> None:
    noise = prefix_noise(7, [5, 11], BlockShape(3, 4, 2), 4)
    assert noise.t.shape == (2, 3, 4, 4)
    for prefix in range(4):
        assert (noise.t[:, :, prefix, :prefix] == 0).all()
        assert (noise.t[:, :, prefix, prefix:] == 1).all()
        assert torch.equal(noise.eps[:, :, prefix], noise.eps[:, :, 0])
    alone = prefix_noise(7, [11], BlockShape(3, 4, 2), 4)
    assert torch.equal(alone.eps[0], noise.eps[1])
    assert not torch.equal(noise.eps[0], noise.eps[1])
    assert not torch.equal(prefix_noise(8, [11], BlockShape(3, 4, 2), 4).eps, alone.eps)


def by_hand(model: BitLMForCausalLM, batch: Batch, seed: int) -> torch.Tensor:
    """-log p of every token [b, N, m], by one call of the head for each."""
    m, B = model.config.block_size, model.config.num_bits
    contexts = model.compute_context(batch.input_ids, batch.attention_mask)
    b, blocks = contexts.shape[:2]
    nats = torch.zeros(b, blocks, m, dtype=torch.float64)
    for row, index in enumerate(batch.indices):
        eps = generator(seed, Stream.BOUND, index, 0).standard_normal((blocks, m, B), dtype="float32")
        for block in range(blocks):
            ids = batch.input_ids[row, m * block : m * block + m]
            prepared = prepare(model, contexts[row, block][None])
            for slot in range(m):
                noisy, t = torch.from_numpy(eps[block].copy()), torch.ones(1, m)
                noisy[:slot], t[:, :slot] = encode(ids[:slot], B), 0
                posterior = model.head(noisy[None], t, model.head_constants(), prepared)
                nats[row, block, slot] = -posterior.log_prob(ids[None])[0, slot]
    return nats


@pytest.mark.parametrize(
    "options",
    [
        {"denoiser": "codebook", "context_path": "direct"},
        {"denoiser": "matched_filter", "attention": "causal"},
        {"denoiser": "codebook", "attention": "causal", "context_path": "attention", "mask": "causal"},
    ],
)
@torch.no_grad()
def test_a_models_chain_is_a_loop_over_slots(build: Build, options: dict) -> None:
    """Of the tokens in the loss alone, in any batches, behind padding."""
    model = build(**options).train()
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    chosen = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.6
    batch = Batch(ids, mask, chosen, [4, 9, 700_000_000_000], [0] * 3)
    nats, tokens = chain_nats(model, batch, seed=2)
    assert model.training
    in_loss = chosen.view(3, 3, 4).clone()
    in_loss[1, :2] = False  # blocks with padding
    assert tokens.tolist() == in_loss.sum(1).tolist()
    torch.testing.assert_close(nats, (by_hand(model, batch, 2) * in_loss).sum(1), rtol=1e-4, atol=1e-4)
    for row, part in enumerate(batch.split(1)):
        torch.testing.assert_close(chain_nats(model, part, seed=2)[0][0], nats[row], rtol=1e-5, atol=1e-5)
    other, _ = chain_nats(model, batch, seed=3)
    assert torch.equal(other, nats) == (options.get("attention") == "causal")  # exact, whatever the noise


def test_mistakes_are_told(build: Build) -> None:
    wrong = Batch(torch.zeros(1, 8, dtype=torch.long), None, None, [1, 2], [0, 0])
    with pytest.raises(ConfigError, match="2 indices for 1 sequences"):
        chain_nats(build(), wrong, 0)
    with pytest.raises(ConfigError, match="the LM head's cross-entropy is exact"):
        chain_nats(build(head="lm"), wrong, 0)
    nothing = Batch(torch.zeros(1, 8, dtype=torch.long), None, torch.zeros(1, 8, dtype=torch.bool), [1], [0])
    with pytest.raises(ConfigError, match="no token carries loss"):
        chain_per_token(build(denoiser="codebook"), [nothing])
