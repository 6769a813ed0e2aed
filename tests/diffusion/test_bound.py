"""The bound equals the entropy of a known source under the exact denoiser, and exceeds it under a worse one."""

import math
from types import SimpleNamespace

import pytest
import torch
from toy import Mixture

from bitlm.batch import Batch
from bitlm.diffusion.bound import Bound, NoisePath, combine, nats_per_token, path_noise, tail_nats, validation_nats
from bitlm.diffusion.noise import BlockShape
from bitlm.errors import ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM

M, B, N = 2, 3, 64
TAIL = math.exp(-8) * B / 2  # what the analytic part adds at most


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

    def __call__(self, ids, attention_mask, *, noise, loss_tokens, diffusion) -> SimpleNamespace:
        assert diffusion.loss == "x"
        clean = self.source.words[ids[:, ::M]][:, :, None]  # the first id of a block names the word
        t = noise.t[..., None]
        estimate = self.damage * self.source.denoise((1 - t) * clean + t * noise.eps, t)
        in_loss = torch.ones(ids.shape, dtype=torch.bool) if loss_tokens is None else loss_tokens
        return SimpleNamespace(slot_loss=((estimate - clean) ** 2).mean(-1), in_loss=in_loss.view(-1, N, M))


def words(source: Mixture, sequences: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(source.probabilities, sequences * N, replacement=True, generator=generator)
    return drawn.view(sequences, N).repeat_interleave(M, dim=1)


def whole(ids: torch.Tensor, first: int = 0, loss_tokens: torch.Tensor | None = None) -> Batch:
    """Sequences with the indices ``first`` and following."""
    return Batch(ids, None, loss_tokens, list(range(first, first + len(ids))), [0] * len(ids))


def bound(source: Mixture, damage: float = 1.0, stagger: float = 0.0, sequences: int = 64) -> Bound:
    ids = words(source, sequences)
    batches = [whole(ids[i : i + 32], i) for i in range(0, sequences, 32)]
    return nats_per_token(ToyModel(source, damage), batches, seed=1, strata=8, stagger=stagger)


def entropy_of_first_token(source: Mixture) -> float:
    shares: dict[tuple, float] = {}
    for word, p in zip(source.words[:, 0].tolist(), source.probabilities.tolist(), strict=True):
        shares[tuple(word)] = shares.get(tuple(word), 0) + p
    return -sum(p * math.log(p) for p in shares.values())


@pytest.mark.parametrize(
    ("make", "stagger"),
    [(independent_bits, 0.0), (dependent_tokens, 0.0), (dependent_tokens, 0.5), (dependent_tokens, 1.0)],
)
def test_exact_denoiser_gives_the_entropy_along_every_path_and_a_damaged_one_more(make, stagger: float) -> None:
    source = make()
    entropy = source.entropy() / M
    exact, damaged = bound(source, stagger=stagger), bound(source, damage=0.9, stagger=stagger)
    assert exact.stderr < 0.05
    assert abs(exact.mean - entropy) < 4 * exact.stderr + TAIL
    assert damaged.mean > exact.mean + 3 * (exact.stderr + damaged.stderr)


def test_one_after_the_other_is_the_chain_rule() -> None:
    """H(first token), then H(second | first): with the first slot clean, the second is told all that it tells."""
    source = dependent_tokens()
    first = entropy_of_first_token(source)
    expected = [first, source.entropy() - first]
    apart = bound(source, stagger=1.0, sequences=128)
    for slot, nats in zip(apart.slots, expected, strict=True):
        assert abs(slot.mean - nats) < 4 * slot.stderr + TAIL
    joint = bound(source, sequences=128)
    assert abs(joint.slots[0].mean - first) > 10 * joint.slots[0].stderr  # noisy neighbours share what they know
    assert sum(slot.mean for slot in joint.slots) / M == pytest.approx(joint.mean)


def test_standard_error_tells_the_spread_over_seeds() -> None:
    source = dependent_tokens()
    ids = words(source, 32)
    model = ToyModel(source)
    estimates = [nats_per_token(model, [whole(ids)], seed=s, strata=4) for s in range(12)]
    spread = torch.tensor([e.mean for e in estimates]).std().item()
    stated = torch.tensor([e.stderr for e in estimates])
    # The stated error also covers the choice of the sequences, so it exceeds the spread over seeds, but not by much.
    assert (spread < 2 * stated).all()
    assert (stated < 10 * spread).all()


@pytest.mark.parametrize("stagger", [0.0, 0.3, 1.0])
def test_integral_of_a_known_error_curve(stagger: float) -> None:
    """e(γ) = 1/(1+γ)² integrates to 1 over [0, ∞); on the sampled range it has a closed form."""
    noise, weights = path_noise(0, range(200), BlockShape(10, 3, 6), NoisePath(16, stagger))
    snr = ((1 - noise.t.double()) / noise.t.double()) ** 2
    got = (weights / (1 + snr) ** 2).sum(2).mean((0, 1)) + tail_nats(6)
    low, high = math.exp(-8), math.exp(4.5)
    expected = 6 / 2 * ((1 / (1 + low) - 1 / (1 + high)) + low)
    assert got.tolist() == pytest.approx([expected] * (3 if stagger else 1), rel=0.02)


def log_snr(t: torch.Tensor) -> torch.Tensor:
    return 2 * torch.log((1 - t.double()) / t.double())


def test_levels_are_stratified_and_belong_to_the_sequence() -> None:
    noise, _ = path_noise(2, [5, 11], BlockShape(30, 4, 3), NoisePath(5))
    part = (log_snr(noise.t)[..., 0] + 8) / 12.5 * 5
    for s in range(5):
        assert (part[..., s] > s - 1e-4).all()
        assert (part[..., s] < s + 1 + 1e-4).all()
    assert not noise.drop.any()
    alone, _ = path_noise(2, [11], BlockShape(30, 4, 3), NoisePath(5))
    assert torch.equal(alone.eps[0], noise.eps[1])
    assert torch.equal(alone.t[0], noise.t[1])


@pytest.mark.parametrize("stagger", [0.25, 0.5, 1.0])
def test_slots_start_one_after_the_other(stagger: float) -> None:
    noise, weights = path_noise(0, range(4), BlockShape(50, 4, 3), NoisePath(40, stagger))
    level = log_snr(noise.t)  # [4, 50, strata, 4]
    assert level.min() > -8.001
    assert level.max() < 4.501
    ahead = level[..., :-1] - level[..., 1:]
    assert (ahead > -1e-3).all()  # earlier slots are never noisier
    both = (weights[..., :-1] > 0) & (weights[..., 1:] > 0)
    assert both.any() == (stagger < 1)
    torch.testing.assert_close(ahead[both], torch.full_like(ahead[both], 12.5 * stagger), rtol=0, atol=1e-3)
    assert ((weights > 0) == ((level > -8 + 1e-4) & (level < 4.5 - 1e-4))).float().mean() > 0.999


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_validation_sums_loss_tokens_per_sequence_and_not_by_batch(head: str) -> None:
    torch.manual_seed(0)
    m = 1 if head == "lm" else 4
    model = BitLMForCausalLM(BitLMConfig(head=head, block_size=m))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(0, 256, (3, 16))
    chosen = torch.rand(3, 16) < 0.6
    nats, tokens = validation_nats(model, whole(ids, 4, chosen), 0)
    assert model.training
    assert nats.shape == (3, m)
    assert tokens.tolist() == chosen.view(3, 16 // m, m).sum(1).tolist()
    each = [torch.arange(16) == position for position in range(16)]
    alone = [validation_nats(model, whole(ids, 4, one.expand(3, -1)), 0)[0].sum(1) for one in each]
    by_token = (torch.stack(alone, 1) * chosen).view(3, 16 // m, m).sum(1)
    torch.testing.assert_close(nats, by_token, rtol=1e-5, atol=0)
    for i in range(3):
        alone, count = validation_nats(model, whole(ids[i : i + 1], 4 + i, chosen[i : i + 1]), 0)
        assert count[0].tolist() == tokens[i].tolist()
        torch.testing.assert_close(alone[0], nats[i], rtol=1e-5, atol=0)
    again, _ = validation_nats(model, whole(ids, 4, chosen), 0)
    assert torch.equal(again, nats)
    assert (nats > 0).all()
    if head == "lm":
        logits = model.head(model.compute_context(ids)[:, :, 0], model.model.embed_tokens.weight).double()
        by_hand = logits.logsumexp(-1) - logits.gather(-1, ids[..., None])[..., 0]
        torch.testing.assert_close(nats[:, 0], (by_hand * chosen).sum(1), rtol=1e-6, atol=0)


def test_combining_is_a_ratio_of_sums() -> None:
    nats, tokens = torch.tensor([[4.0, 6.0], [30.0, 10.0], [9.0, 9.0]]), torch.tensor([[5, 5], [10, 10], [6, 6]])
    found = combine(nats, tokens)
    assert found.mean == pytest.approx(68 / 42)
    residuals = [10 - 10 * 68 / 42, 40 - 20 * 68 / 42, 18 - 12 * 68 / 42]
    assert found.stderr == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 42)
    assert [slot.mean for slot in found.slots] == pytest.approx([43 / 21, 25 / 21])
    residuals = [4 - 5 * 43 / 21, 30 - 10 * 43 / 21, 9 - 6 * 43 / 21]
    assert found.slots[0].stderr == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 21)
    assert found.bits_per_byte(4.0) == pytest.approx(68 / 42 / math.log(2) / 4)
    assert combine(nats[:1], tokens[:1]) == Bound(1.0, math.inf, ((0.8, math.inf), (1.2, math.inf)))
    unequal = combine(nats, torch.tensor([[5, 4], [10, 10], [6, 5]]))
    assert unequal.mean == pytest.approx(68 / 40)
    assert [slot.mean for slot in unequal.slots] == pytest.approx([43 / 21, 25 / 19])
    residuals = [6 - 4 * 25 / 19, 10 - 10 * 25 / 19, 9 - 5 * 25 / 19]
    assert unequal.slots[1].stderr == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 19)
    with pytest.raises(ConfigError, match="no token"):
        combine(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long))


def test_a_slot_without_tokens_has_no_figure() -> None:
    found = combine(torch.tensor([[4.0, 0.0]]), torch.tensor([[2, 0]]))
    assert found.mean == 2.0
    assert math.isnan(found.slots[1].mean)


def test_one_index_per_sequence() -> None:
    wrong = Batch(torch.zeros(1, 2 * N, dtype=torch.long), None, None, [1, 2], [0, 0])
    with pytest.raises(ConfigError, match="2 indices for 1 sequences"):
        validation_nats(ToyModel(dependent_tokens()), wrong, 0)
