"""Token commitment with an exact denoiser of sources given as tables, against loops and exact distributions."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from toy import TablePosterior

from bitlm.codes import decode, encode
from bitlm.diffusion.commitment import Commitment
from bitlm.diffusion.sampler import Sampled

V, B, M = 3, 2, 4
WORDS = torch.tensor(list(itertools.product(range(V), repeat=M)))  # [w, m]
MEMBER = torch.nn.functional.one_hot(WORDS, V).double()  # [w, m, V]


@dataclass
class Exact:
    """p(y_i | clean slots) of n blocks, each with a source of its own ``joint`` [n, w], and the same for the null
    branch. It notes how many rows it is given in each call."""

    joint: torch.Tensor
    null: torch.Tensor | None = None
    keeps: bool = False
    calls: list[int] = field(default_factory=list)

    def __call__(self, noisy: torch.Tensor, t: torch.Tensor, guided: bool) -> TablePosterior:
        assert set(t.unique().tolist()) <= {0.0, 1.0}
        self.calls.append(len(noisy))
        posterior = self._of(self.joint, noisy, t)
        return (
            posterior
            if not guided
            else TablePosterior(torch.cat([posterior.log_p, self._of(self.null, noisy, t).log_p]), B)
        )

    def _of(self, joint: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> TablePosterior:
        clean = (t == 0)[:, None]
        fits = ((decode(noisy, 4)[:, None] == WORDS) | ~clean).all(-1)  # [n, w]
        weights = joint * fits
        return TablePosterior((torch.einsum("nw,wmv->nmv", weights, MEMBER) / weights.sum(1)[:, None, None]).log(), B)

    def walk(self, guided: bool) -> Callable[[torch.Tensor, int], TablePosterior] | None:
        """The same along the slots, for a denoiser that ``keeps`` the clean ones."""
        if not self.keeps:
            return None
        seen = torch.empty(len(self.joint), 0, dtype=torch.long)

        def posterior(ids: torch.Tensor, count: int) -> TablePosterior:
            nonlocal seen
            seen = torch.cat([seen, ids], dim=1)
            start, m = seen.shape[1], M - seen.shape[1]
            noisy = torch.cat([encode(seen, B), torch.zeros(len(seen), m, B)], dim=1)
            t = torch.cat([torch.zeros(1, start), torch.ones(1, m)], dim=1)
            return TablePosterior(self(noisy, t, guided).log_p[:, start : start + count], B)

        return posterior

    def keep(self, rows: torch.Tensor) -> "Exact":
        return replace(self, joint=self.joint[rows], null=None if self.null is None else self.null[rows])


def sources(n: int, seed: int = 0, sharpness: float = 1.5) -> torch.Tensor:
    return (
        sharpness * torch.randn(n, V**M, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ).softmax(-1)


def draw(n: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, M, B, generator=generator), torch.rand(n, M, dtype=torch.float64, generator=generator)


def conditional(joint: torch.Tensor, landed: dict[int, int], slot: int) -> list[float]:
    """p(y_slot | landed slots) of one source, by adding up words."""
    mass = [0.0] * V
    for word, p in zip(WORDS.tolist(), joint.tolist(), strict=True):
        if all(word[i] == token for i, token in landed.items()):
            mass[word[slot]] += p
    return [each / sum(mass) for each in mass]


def loop(
    joint: torch.Tensor, sampler: Commitment, uniform: list[float], null: torch.Tensor | None = None
) -> tuple[list[int], int]:
    """Tokens and steps of one block, slot by slot."""
    landed: dict[int, int] = {}
    steps = 0
    while len(landed) < M:
        steps += 1
        best, chosen = {}, {}
        for slot in set(range(M)) - landed.keys():
            p = conditional(joint, landed, slot)
            if null is not None:
                q = conditional(null, landed, slot)
                p = [b * (a / b) ** sampler.guidance_scale for a, b in zip(p, q, strict=True)]
                p = [each / sum(p) for each in p]
            best[slot] = max(p)
            chosen[slot] = p.index(max(p))
            if sampler.temperature:
                powers = [each ** (1 / sampler.temperature) for each in p]
                passed = list(itertools.accumulate(each / sum(powers) for each in powers))
                chosen[slot] = next(y for y, below in enumerate([*passed[:-1], 2.0]) if uniform[slot] < below)
        order = sorted(best) if sampler.order == "left" else sorted(best, key=lambda slot: -best[slot])
        landing = set(order[: sampler.slots_per_call])
        if sampler.threshold is not None:
            landing |= {slot for slot in best if best[slot] > sampler.threshold}
        landed |= {slot: chosen[slot] for slot in landing}
    return [landed[slot] for slot in range(M)], steps


SAMPLERS = [
    Commitment(M, order, slots, threshold, temperature, scale)
    for order in ("left", "surest")
    for slots, threshold, temperature, scale in [
        (1, None, 0.0, 1.0),
        (2, None, 1.0, 1.0),
        (4, None, 0.0, 1.0),
        (1, 0.6, 0.0, 1.0),
        (2, 0.5, 0.7, 1.0),
        (1, 0.7, 1.0, 2.5),
        (1, None, 0.0, 2.5),
    ]
]


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_block_is_that_of_a_loop_over_slots(sampler: Commitment, keeps: bool) -> None:
    n = 60
    noise, uniform = draw(n)
    exact = Exact(sources(n), sources(n, seed=1) if sampler.guided else None, keeps)
    made = sampler(exact, noise, uniform, trace=True)
    expected = [
        loop(exact.joint[i], sampler, uniform[i].tolist(), exact.null[i] if sampler.guided else None) for i in range(n)
    ]
    assert made.ids.tolist() == [ids for ids, _ in expected]
    cost = 2 if sampler.guided else 1
    assert made.calls.tolist() == [cost * steps for _, steps in expected]
    assert cost * sum(exact.calls) == made.calls.sum()  # a block that is complete is not computed any more
    assert sampler.max_calls == cost * M // sampler.slots_per_call
    for row in range(n):
        states = made.states[row]
        assert len(states) == expected[row][1] + 1
        assert torch.equal(states[0], noise[row])
        assert torch.equal(states[-1], encode(made.ids[row], B))
        for before, after in itertools.pairwise(states):
            landed = (after == states[-1]).all(-1)
            assert torch.equal(after[~landed], noise[row][~landed])
            assert (landed >= (before == states[-1]).all(-1)).all()  # what has landed stays
            assert int(landed.sum()) > int((before == states[-1]).all(-1).sum())
    if sampler.threshold is not None:
        assert len(set(made.calls.tolist())) > 1


def chi_square(made: Sampled, expected: torch.Tensor) -> float:
    index = (made.ids * V ** torch.arange(M - 1, -1, -1)).sum(1)
    counts = torch.bincount(index, minlength=V**M).double()
    return float(((counts - len(index) * expected) ** 2 / (len(index) * expected)).sum())


CRITICAL = 80 + 4 * math.sqrt(2 * 80)  # mean and deviation of χ² with 80 degrees of freedom; passed once in 7,000


@pytest.mark.parametrize(
    ("order", "threshold", "keeps"),
    [("left", None, False), ("surest", None, False), ("left", 1.0, False), ("left", None, True)],
)
def test_one_by_one_at_temperature_one_samples_the_source(order: str, threshold: float | None, keeps: bool) -> None:
    n, source = 30_000, sources(1, seed=5, sharpness=0.7)
    exact = Exact(source.expand(n, -1), keeps=keeps)
    made = Commitment(M, order, threshold=threshold, temperature=1.0)(exact, *draw(n))
    assert chi_square(made, source[0]) < CRITICAL
    assert made.calls.tolist() == [M] * n


def test_all_at_once_samples_the_product_of_the_slots() -> None:
    n, source = 30_000, sources(1, seed=5, sharpness=0.7)
    slots = torch.einsum("w,wmv->mv", source[0], MEMBER)
    product = torch.stack([slots[i, WORDS[:, i]] for i in range(M)]).prod(0)
    made = Commitment(M, slots_per_call=M, temperature=1.0)(Exact(source.expand(n, -1)), *draw(n))
    assert chi_square(made, product) < CRITICAL < chi_square(made, source[0])
    assert made.calls.tolist() == [1] * n


@pytest.mark.parametrize("order", ["left", "surest"])
def test_a_threshold_of_zero_takes_one_call_and_of_one_takes_all(order: str) -> None:
    noise, uniform = draw(50)
    exact = Exact(sources(50))
    one = Commitment(M, order, threshold=0.0)(exact, noise, uniform)
    assert one.calls.tolist() == [1] * 50
    assert torch.equal(one.ids, Commitment(M, slots_per_call=M)(exact, noise).ids)
    every = Commitment(M, order)(exact, noise)
    for threshold in (1.0, math.inf):
        made = Commitment(M, order, threshold=threshold)(exact, noise, uniform)
        assert torch.equal(made.ids, every.ids)
        assert made.calls.tolist() == every.calls.tolist() == [M] * 50


def test_samplers_with_the_same_settings_are_equal() -> None:
    assert Commitment(4, "left", 2) == Commitment(4, "left", 2) != Commitment(4, "surest", 2)
    assert hash(Commitment(4, "left", 2)) == hash(Commitment(4, "left", 2))
