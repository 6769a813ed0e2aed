"""Generation with the cache against a plain loop that recomputes everything, and what must not matter to it."""

from collections.abc import Callable

import pytest
import torch

from bitlm.diffusion.noise import sample_noise
from bitlm.errors import ConfigError
from bitlm.model import BitLMForCausalLM, stream_blocks

Build = Callable[..., BitLMForCausalLM]
PROMPTS = [[7, 3, 9, 1, 4, 4, 21, 30, 2][:length] for length in range(1, 10)]


def next_context(model: BitLMForCausalLM, sequence: list[int]) -> torch.Tensor:
    """C [1, m, D] behind a sequence, by one pass over all of it."""
    m = model.config.block_size
    padding = -len(sequence) % m
    ids = torch.tensor([[0] * padding + sequence + [0] * m])  # the last block is not fed
    mask = torch.tensor([[0] * padding + [1] * (len(sequence) + m)])
    return model.context(ids, mask)[:, -1]


def plain_block(model: BitLMForCausalLM, context: torch.Tensor, noise: torch.Tensor, K: int, omega: float) -> list[int]:
    """The article's sampler, step by step, for one block."""
    A = noise[None]
    for k in range(K, 0, -1):
        t = torch.tensor([[k / K]])
        estimate = torch.tanh(model.head(A, t, model.head.condition(context)) / 2)
        null = torch.tanh(model.head(A, t, model.head.null_condition()) / 2)
        estimate = null + omega * (estimate - null)
        ratio = (k - 1) / k
        A = ratio * A + (1 - ratio) * estimate
    values = [int("".join("1" if x > 0 else "0" for x in slot), 2) for slot in A[0].tolist()]
    return [min(value, model.config.vocab_size - 1) for value in values]


@torch.no_grad()
def plain_generate(
    model: BitLMForCausalLM, prompt: list[int], tokens: int, key: int = 0, K: int = 1, omega: float = 1.0
) -> list[int]:
    m = model.config.block_size
    made: list[int] = []
    for block in range(-(-tokens // m)):
        context = next_context(model, prompt + made)
        if model.config.head == "lm":
            made.append(int(model.head(context, model.model.embed_tokens.weight).argmax()))
        else:
            made += plain_block(model, context, sample_noise(3, key, block, m, model.config.num_bits), K, omega)
    made = made[:tokens]
    end = model.config.end_token_id
    return made[: made.index(end)] if end in made else made


@pytest.mark.parametrize(("K", "omega"), [(1, 1.0), (5, 1.0), (4, 2.5)])
@pytest.mark.parametrize("m", [2, 4])
def test_cache_equals_recomputation_for_every_prompt_length(build: Build, m: int, K: int, omega: float) -> None:
    model = build(block_size=m)
    for prompt in PROMPTS[: 2 * m + 1]:
        output = model.generate(
            [prompt], max_new_tokens=10, num_steps=K, guidance_scale=omega, seed=3, example_ids=[len(prompt)]
        )
        assert output.ids == [plain_generate(model, prompt, 10, len(prompt), K, omega)]


@pytest.mark.parametrize("tied", [True, False])
def test_lm_cache_equals_recomputation(build: Build, tied: bool) -> None:
    model = build(head="lm", tie_word_embeddings=tied)
    made = set()
    for prompt in PROMPTS:
        expected = plain_generate(model, prompt, 10)
        assert model.generate([prompt], max_new_tokens=10).ids == [expected]
        made.add(tuple(expected))
    assert len(made) > 3  # the prompts do matter


@pytest.mark.parametrize(
    ("options", "temperature"),
    [({"head": "lm"}, 0.0), ({"head": "lm"}, 1.0), ({}, 0.0), ({"denoiser": "matched_filter"}, 0.0)],
)
def test_batch_and_padding_change_nothing(build: Build, options: dict, temperature: float) -> None:
    model = build(**options)
    settings = {"max_new_tokens": 13, "num_steps": 4, "guidance_scale": 2.0, "temperature": temperature, "seed": 8}
    alone = [model.generate([p], example_ids=[i], **settings) for i, p in enumerate(PROMPTS)]
    together = model.generate(PROMPTS, **settings)
    assert together.ids == [output.ids[0] for output in alone]
    assert together.calls == [output.calls[0] for output in alone]
    shuffled = [6, 2, 8, 0]
    beside_long = model.generate([*(PROMPTS[i] for i in shuffled), [5] * 50], example_ids=[*shuffled, 77], **settings)
    assert beside_long.ids[:4] == [together.ids[i] for i in shuffled]
    assert len({tuple(ids) for ids in together.ids}) > 3


def test_noise_belongs_to_seed_and_example(build: Build) -> None:
    model, settings = build(), {"max_new_tokens": 8, "num_steps": 3, "guidance_scale": 1.0}
    same = model.generate([[1, 2]] * 3, example_ids=[5, 5, 6], seed=1, **settings).ids
    assert same[0] == same[1] != same[2]
    assert model.generate([[1, 2]], example_ids=[5], seed=2, **settings).ids[0] != same[0]


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_rows_stop_at_the_end_token(build: Build, head: str) -> None:
    model = build(head=head)
    settings = {"max_new_tokens": 14, "num_steps": 3, "guidance_scale": 1.0, "temperature": 1.0, "seed": 4}
    model.config.end_token_id = -1
    free = model.generate(PROMPTS, **settings)
    m, end = model.config.block_size, free.ids[0][6]
    model.config.end_token_id = end
    stopped = model.generate(PROMPTS, **settings)
    assert stopped.ended[0]
    for row in range(len(PROMPTS)):
        whole = free.ids[row]
        cut = whole.index(end) if end in whole else 14
        assert stopped.ids[row] == whole[:cut]
        assert stopped.ended[row] == (end in whole)
        blocks = min(cut // m + 1, -(-14 // m))
        assert stopped.blocks[row] == blocks
        assert stopped.calls[row] == blocks * (3 if head == "diffusion" else 1)
    assert not free.ended[0]
    assert [len(ids) for ids in free.ids] == [14] * len(PROMPTS)


def test_blocks_stream_as_they_are_realized(build: Build) -> None:
    model, settings = build(), {"max_new_tokens": 10, "num_steps": 2, "guidance_scale": 3.0}
    model.config.end_token_id = -1  # no row ends by itself
    streamed: dict[int, list[int]] = {0: [], 1: []}
    sizes = []
    for step in stream_blocks(model, PROMPTS[2:4], **settings):
        assert step.calls == 4  # 2K with guidance
        sizes.append([len(ids) for ids in step.ids])
        for row, ids in zip(step.rows, step.ids, strict=True):
            streamed[row] += ids
    assert list(streamed.values()) == model.generate(PROMPTS[2:4], **settings).ids
    assert sizes == [[4, 4], [4, 4], [2, 2]]


def test_head_calls_are_k_batched_ones(build: Build) -> None:
    model, seen = build(), []
    model.head.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), args[1].item())))
    model.generate([[1], [2]], max_new_tokens=4, num_steps=4, guidance_scale=9.0)
    assert seen == [(4, 1.0), (4, 0.75), (4, 0.5), (4, 0.25)]
    seen.clear()
    model.generate([[1], [2]], max_new_tokens=4, num_steps=2, guidance_scale=1.0)
    assert seen == [(2, 1.0), (2, 0.5)]


def test_lm_sampling_follows_the_softmax(build: Build) -> None:
    model, n = build(head="lm"), 3000
    with torch.no_grad():
        logits = model.head(next_context(model, [1, 2]), model.model.embed_tokens.weight)[0, 0]
    model.config.end_token_id = -1
    made = model.generate([[1, 2]] * n, max_new_tokens=1, temperature=2.0)
    counts = torch.bincount(torch.tensor([ids[0] for ids in made.ids]), minlength=50)
    expected = (logits / 2).softmax(-1)
    assert (counts / n - expected).abs().sum() / 2 < 0.06


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 50]], {}, "prompt 0: token id 50 is outside the vocabulary"),
        ([[-1]], {}, "token id -1"),
        ([[1] * 50_000], {}, "prompt 0: 50000 tokens"),
        ([[1]], {"num_steps": 0}, "num_steps = 0"),
        ([[1]], {"guidance_scale": -0.5}, "guidance_scale = -0.5"),
        ([[1]], {"guidance_scale": float("nan")}, "guidance_scale = nan"),
        ([[1]], {"temperature": -1.0}, "temperature = -1.0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens = 0"),
        ([[1]], {"example_ids": [1, 2]}, "2 example ids for 1 prompts"),
    ],
)
def test_mistakes_are_told(build: Build, prompts: list[list[int]], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build().generate(prompts, **{"max_new_tokens": 4} | options)


def test_no_prompts_no_output(build: Build) -> None:
    assert build().generate([], max_new_tokens=4).ids == []
