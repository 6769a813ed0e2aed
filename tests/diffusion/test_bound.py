"""The bound equals the entropy of a known source under the exact denoiser, and exceeds it under a worse one."""

import math
from types import SimpleNamespace

import pytest
import torch
from toy import Mixture

from bitlm.diffusion.bound import Nats, combine, nats_per_block, nats_per_token, stratified_noise, validation_nats
from bitlm.errors import ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM

M, B, N = 2, 3, 64


def independent_bits() -> Mixture:
    """All 64 words of 2x3 bits, with P(bit = 1) = 0.5, 0.9, 0.7 in every token."""
    bits = torch.tensor([[[(w >> 5 - 3 * i - j) & 1 for j in range(3)] for i in range(2)] for w in range(64)])
    p = torch.tensor([0.5, 0.9, 0.7]).double()
    return Mixture(bits * 2.0 - 1, torch.where(bits == 1, p, 1 - p).prod(-1).prod(-1))


def dependent_tokens() -> Mixture:
    words = torch.tensor([[[1, 1, 1], [1, 1, 1]], [[1, -1, 1], [-1, -1, 1]], [[-1, -1, -1], [1, -1, -1]]]).float()
    return Mixture(words, torch.tensor([0.6, 0.3, 0.1]).double())


class ToyModel:
    """Answers like the model's forward, with the source's own posterior mean scaled by ``damage``."""

    def __init__(self, source: Mixture, damage: float = 1.0) -> None:
        self.source, self.damage, self.training = source, damage, False
        self.config = SimpleNamespace(head="diffusion", block_size=M, num_bits=B)

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def __call__(self, ids, attention_mask, *, noise, loss_blocks, objective) -> SimpleNamespace:
        assert objective == "x"
        clean = self.source.words[ids[:, ::M]][:, :, None]  # the first id of a block names the word
        t = noise.t[..., None, None]
        estimate = self.damage * self.source.denoise((1 - t) * clean + t * noise.eps, t)
        chosen = torch.ones(ids.shape[0], N, dtype=torch.bool) if loss_blocks is None else loss_blocks
        return SimpleNamespace(block_loss=((estimate - clean) ** 2).mean((-2, -1)), in_loss=chosen)


def words(source: Mixture, sequences: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(source.probabilities, sequences * N, replacement=True, generator=generator)
    return drawn.view(sequences, N).repeat_interleave(M, dim=1)


def bound(source: Mixture, damage: float = 1.0, sequences: int = 64) -> Nats:
    ids = words(source, sequences)
    batches = [(ids[i : i + 32], None, None, range(i, i + 32)) for i in range(0, sequences, 32)]
    return nats_per_token(ToyModel(source, damage), batches, seed=1, strata=8)


@pytest.mark.parametrize("make", [independent_bits, dependent_tokens])
def test_exact_denoiser_gives_the_entropy_and_a_damaged_one_more(make) -> None:
    source = make()
    entropy = source.entropy() / M
    exact, damaged = bound(source), bound(source, damage=0.9)
    tail = math.exp(-8) * B / 2  # what the analytic part adds at most
    assert exact.stderr < 0.03
    assert abs(exact.mean - entropy) < 4 * exact.stderr + tail
    assert damaged.mean > exact.mean + 4 * (exact.stderr + damaged.stderr)


def test_standard_error_tells_the_spread_over_seeds() -> None:
    source = dependent_tokens()
    ids = words(source, 32)
    model = ToyModel(source)
    estimates = [nats_per_token(model, [(ids, None, None, range(32))], seed=s, strata=4) for s in range(12)]
    spread = torch.tensor([e.mean for e in estimates]).std().item()
    assert spread < 2 * estimates[0].stderr  # the stated error also holds the choice of the sequences


def test_integral_of_a_known_error_curve() -> None:
    """e(γ) = 1/(1+γ)² integrates to 1 over [0, ∞); on the sampled range it has a closed form."""
    noise = stratified_noise(0, range(200), 10, 1, 1, 16)
    snr = ((1 - noise.t.double()) / noise.t.double()) ** 2
    got = nats_per_block(1 / (1 + snr) ** 2, noise.t, bits=6).mean().item()
    low, high = math.exp(-8), math.exp(4.5)
    expected = 6 / 2 * ((1 / (1 + low) - 1 / (1 + high)) + low)
    assert got == pytest.approx(expected, rel=0.01)


def test_levels_are_stratified_and_belong_to_the_sequence() -> None:
    noise = stratified_noise(2, [5, 11], 30, 4, 3, 5)
    part = (torch.log(((1 - noise.t.double()) / noise.t.double()) ** 2) + 8) / 12.5 * 5
    for s in range(5):
        assert (part[..., s] > s - 1e-4).all()
        assert (part[..., s] < s + 1 + 1e-4).all()
    assert not noise.drop.any()
    alone = stratified_noise(2, [11], 30, 4, 3, 5)
    assert torch.equal(alone.eps[0], noise.eps[1])
    assert torch.equal(alone.t[0], noise.t[1])


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_validation_sums_loss_blocks_per_sequence_and_not_by_batch(head: str) -> None:
    torch.manual_seed(0)
    m = 1 if head == "lm" else 4
    model = BitLMForCausalLM(BitLMConfig(head=head, block_size=m))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(0, 256, (3, 16))
    chosen = torch.rand(3, 16 // m) < 0.6
    nats, tokens = validation_nats(model, ids, None, chosen, 0, [4, 5, 6])
    assert model.training
    assert tokens.tolist() == (chosen.sum(1) * m).tolist()
    for i in range(3):
        alone, count = validation_nats(model, ids[i : i + 1], None, chosen[i : i + 1], 0, [4 + i])
        assert count == tokens[i]
        assert alone.item() == pytest.approx(nats[i].item(), rel=1e-5)
    again, _ = validation_nats(model, ids, None, chosen, 0, [4, 5, 6])
    assert torch.equal(again, nats)
    assert (nats > 0).all()
    if head == "lm":
        logits = model.head(model.context(ids)[:, :, 0], model.model.embed_tokens.weight).double()
        by_hand = logits.logsumexp(-1) - logits.gather(-1, ids[..., None])[..., 0]
        torch.testing.assert_close(nats, (by_hand * chosen).sum(1), rtol=1e-6, atol=0)


def test_combining_is_a_ratio_of_sums() -> None:
    nats, tokens = torch.tensor([10.0, 40.0, 18.0]), torch.tensor([5, 10, 6])
    mean, stderr = combine(nats, tokens)
    assert mean == pytest.approx(68 / 21)
    residuals = [10 - 5 * 68 / 21, 40 - 10 * 68 / 21, 18 - 6 * 68 / 21]
    assert stderr == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 21)
    assert combine(nats[:1], tokens[:1]) == (2.0, math.inf)
    with pytest.raises(ConfigError, match="no token"):
        combine(torch.zeros(2), torch.zeros(2, dtype=torch.long))


def test_one_index_per_sequence() -> None:
    with pytest.raises(ConfigError, match="2 indices for 1 sequences"):
        validation_nats(ToyModel(dependent_tokens()), torch.zeros(1, 2 * N, dtype=torch.long), None, None, 0, [1, 2])
