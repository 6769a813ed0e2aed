"""Token commitment along a head that keeps clean slots: the tokens of the plain path, exactly; and, sampled one by one,
the distribution that the chain tells."""

import math
from collections.abc import Callable

import pytest
import torch

from bitlm.batch import Batch
from bitlm.diffusion.chain import chain_nats
from bitlm.model import BitLMForCausalLM, codebook
from bitlm.model.head import DiffusionHead
from bitlm.model.state import HeadConstants

Build = Callable[..., BitLMForCausalLM]
PROMPTS = [[7, 3, 9, 1, 4, 4, 21, 30, 2][:length] for length in range(1, 10)]
HEADS = [
    {"denoiser": "codebook", "context_path": "attention", "mask": "causal"},
    {"denoiser": "codebook", "context_path": "direct", "codebook_rank": 5},
    {"denoiser": "codebook_prior", "context_path": "norm"},
    {"denoiser": "matched_filter", "context_path": "attention", "slot_embedding": True},
]
SAMPLINGS = [
    {},
    {"temperature": 1.0},
    {"guidance_scale": 2.0},
    {"slots_per_call": 2, "temperature": 0.7},
    {"slots_per_call": 4, "guidance_scale": 3.0, "temperature": 1.0},
]


def made(build: Build, options: dict) -> BitLMForCausalLM:
    model = build(attention="causal", **options)
    if model.config.has_codebook:
        model.set_unigram(torch.arange(model.config.vocab_size) ** 2)
    return model


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("options", HEADS)
def test_a_walk_makes_the_tokens_of_whole_calls(
    build: Build, monkeypatch: pytest.MonkeyPatch, options: dict, sampling: dict
) -> None:
    """In a batch, alone, and beside a long prompt; calls are counted as they are made."""
    model = made(build, options)
    model.config.end_token_id = -1
    settings = {"max_new_tokens": 12, "sampler": "commit", "seed": 8, **sampling}
    widths = []
    hook = model.head.network.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[:2]))
    walked = model.generate(PROMPTS, **settings)
    hook.remove()
    count, branches = settings.get("slots_per_call", 1), 2 if "guidance_scale" in settings else 1
    rows, steps = branches * len(PROMPTS), 4 // count
    assert widths == [(rows, count), *[(rows, 2 * count)] * (steps - 1)] * 3
    assert walked.calls == [3 * steps * branches] * len(PROMPTS)
    assert len({tuple(ids) for ids in walked.ids}) > 3
    for i, prompt in enumerate(PROMPTS):
        assert model.generate([prompt], example_ids=[i], **settings).ids == [walked.ids[i]]
    beside_long = model.generate([PROMPTS[6], [5] * 50, PROMPTS[2]], example_ids=[6, 77, 2], **settings)
    assert [beside_long.ids[0], beside_long.ids[2]] == [walked.ids[6], walked.ids[2]]
    traced = model.generate(PROMPTS, trace=True, **settings)
    assert (traced.ids, traced.calls) == (walked.ids, walked.calls)
    monkeypatch.setattr(DiffusionHead, "keeps_slots", False)
    plain = model.generate(PROMPTS, **settings)
    assert (plain.ids, plain.calls, plain.saved) == (walked.ids, walked.calls, walked.saved)


@pytest.mark.parametrize("options", HEADS[:1])
def test_rows_that_end_leave_the_others_alone(build: Build, options: dict) -> None:
    model = made(build, options)
    settings = {"max_new_tokens": 16, "sampler": "commit", "temperature": 1.0, "seed": 4}
    model.config.end_token_id = -1
    free = model.generate(PROMPTS, **settings)
    model.config.end_token_id = end = free.ids[0][6]
    stopped = model.generate(PROMPTS, **settings)
    for row, ids in enumerate(free.ids):
        cut = ids.index(end) if end in ids else 16
        assert stopped.ids[row] == ids[:cut]
        assert stopped.calls[row] == 4 * min(cut // 4 + 1, 4)
    assert len(set(stopped.blocks)) > 1


@pytest.mark.parametrize("options", [HEADS[0], {"denoiser": "codebook", "context_path": "norm", "attention": "full"}])
def test_one_by_one_at_temperature_one_is_the_chains_distribution(build: Build, options: dict) -> None:
    """χ² over all 25 blocks of two slots; with full attention the mean over the noise."""
    model = build(
        **{"attention": "causal"} | options, vocab_size=5, num_bits=3, block_size=2, end_token_id=4, pad_token_id=4
    )
    model.config.end_token_id = -1
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5)  # less steep, so that more blocks are likely
    prompt, n = [3, 0, 1, 2], 3000
    blocks = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    ids = torch.cat([torch.tensor([prompt]).expand(25, -1), blocks], dim=1)
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -2:] = True
    noises = 1 if model.head.keeps_slots else 200
    indices = [index for index in range(noises) for _ in range(25)]
    batch = Batch(ids.repeat(noises, 1), None, last.repeat(noises, 1), indices, [0] * len(indices))
    expected = (-chain_nats(model, batch, seed=0)[0].sum(1)).exp().view(noises, 25).mean(0)
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)
    made = model.generate([prompt] * n, max_new_tokens=2, sampler="commit", temperature=1.0)
    counts = torch.bincount(torch.tensor([5 * first + second for first, second in made.ids]), minlength=25).double()
    likely = expected > 10 / n
    bins = int(likely.sum()) + 1  # all others together
    assert bins > 8
    critical = bins - 1 + 4 * math.sqrt(2 * (bins - 1))

    def chi_square(p: torch.Tensor) -> float:
        found, expect = (torch.cat([each[likely], each[~likely].sum()[None]]) for each in (counts, n * p))
        return float(((found - expect) ** 2 / expect).sum())

    assert chi_square(expected) < critical
    independent = expected.view(5, 5).sum(1)[:, None] * expected.view(5, 5).sum(0)
    assert chi_square(independent.flatten()) > critical


@pytest.mark.parametrize(("rank", "products"), [(5, [4]), (None, [1, 1, 1, 1])])
def test_a_narrow_codebook_is_scored_once_for_all_slots(
    build: Build, monkeypatch: pytest.MonkeyPatch, rank: int | None, products: list[int]
) -> None:
    """E is read once per block where R is narrower, and else once in each call; its tables are made once per model."""
    model = made(build, {"denoiser": "codebook", "context_path": "attention", "codebook_rank": rank})
    model.config.end_token_id = -1
    scored, tables = [], []
    token_scores, all_constants = codebook.token_scores, model.walk_constants

    def counted(query: torch.Tensor, constants: HeadConstants) -> torch.Tensor:
        scored.append(query.shape[-2])
        return token_scores(query, constants)

    monkeypatch.setattr(codebook, "token_scores", counted)
    monkeypatch.setattr(model, "walk_constants", lambda guided: tables.append(guided) or all_constants(guided))
    once = model.generate([[1, 2, 3]], max_new_tokens=8, sampler="commit")
    again = model.generate([[1, 2, 3]], max_new_tokens=8, sampler="commit")
    assert scored == 4 * products
    assert tables == [False]
    assert once.ids == again.ids
    with torch.no_grad():
        model.embedding.mul_(-1)
    assert model.generate([[1, 2, 3]], max_new_tokens=8, sampler="commit").ids != once.ids
    assert tables == [False, False]
