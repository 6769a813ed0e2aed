"""Generation with the cache against a plain loop that recomputes everything, and what must not matter to it."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch._inductor.config
from small_models import log_odds, prepare, prepare_null

from bitlm.codes import encode
from bitlm.diffusion.noise import sample_noise, token_uniform
from bitlm.model import BitLMForCausalLM
from bitlm.model.state import BlockState

Build = Callable[..., BitLMForCausalLM]
COMMIT = {"sampler": "commit", "num_steps": 15}
PROMPTS = [[7, 3, 9, 1, 4, 4, 21, 30, 2][:length] for length in range(1, 10)]


def next_context(model: BitLMForCausalLM, sequence: list[int]) -> torch.Tensor:
    """C [1, m, D] behind a sequence, by one pass over all of it."""
    m = model.config.block_size
    padding = -len(sequence) % m
    ids = torch.tensor([[0] * padding + sequence + [0] * m])  # the last block is not fed
    mask = torch.tensor([[0] * padding + [1] * (len(sequence) + m)])
    return model.compute_context(ids, mask)[:, -1]


def plain_block(
    model: BitLMForCausalLM, context: torch.Tensor, noise: torch.Tensor, K: int, omega: float, high: float
) -> list[int]:
    """The article's sampler, step by step, for one block; guided up to the noise level ``high``."""
    A = noise[None]
    for k in range(K, 0, -1):
        t = torch.tensor([[k / K]])
        estimate = torch.tanh(log_odds(model, A, t, prepare(model, context)) / 2)
        null = torch.tanh(log_odds(model, A, t, prepare_null(model, 1)) / 2)
        if k / K <= high:
            estimate = null + omega * (estimate - null)
        ratio = (k - 1) / k
        A = ratio * A + (1 - ratio) * estimate
    values = [int("".join("1" if x > 0 else "0" for x in slot), 2) for slot in A[0].tolist()]
    return [min(value, model.config.vocab_size - 1) for value in values]


@torch.no_grad()
def plain_generate(
    model: BitLMForCausalLM,
    prompt: list[int],
    tokens: int,
    key: int = 0,
    K: int = 1,
    omega: float = 1.0,
    high: float = 1.0,
) -> list[int]:
    m = model.config.block_size
    made: list[int] = []
    for block in range(-(-tokens // m)):
        context = next_context(model, prompt + made)
        if model.config.head == "lm":
            made.append(int(model.head(context, model.model.embed_tokens.weight).argmax()))
        else:
            noise = sample_noise(3, key, block, m, model.config.num_bits)
            made += plain_block(model, context, noise, K, omega, high)
    made = made[:tokens]
    end = model.config.end_token_id
    return made[: made.index(end)] if end in made else made


@pytest.mark.parametrize(
    ("m", "K", "omega", "high", "options"),
    [
        (4, 1, 1.0, 1.0, {}),
        (2, 4, 2.5, 1.0, {}),
        (4, 4, 1.0, 1.0, {"slot_embedding": True}),
        (2, 2, 2.5, 1.0, {"denoiser": "matched_filter", "context_path": "direct", "slot_embedding": True}),
        (4, 2, 2.0, 1.0, {"denoiser": "codebook"}),
        (2, 3, 3.0, 0.5, {"denoiser": "codebook"}),
        (4, 4, 2.5, 0.8, {"denoiser": "matched_filter"}),
    ],
)
def test_cache_equals_recomputation_for_every_prompt_length(
    build: Build, m: int, K: int, omega: float, high: float, options: dict
) -> None:
    model = build(block_size=m, **options)
    made = set()
    for prompt in PROMPTS[: 2 * m + 1]:
        output = model.generate(
            [prompt],
            max_new_tokens=9,
            num_steps=K,
            guidance_scale=omega,
            guidance_high=high,
            seed=3,
            example_ids=[len(prompt)],
        )
        assert output.ids == [plain_generate(model, prompt, 9, len(prompt), K, omega, high)]
        guided = sum(k / K <= high for k in range(1, K + 1)) if omega != 1 else 0
        assert output.calls == [(K + guided) * output.blocks[0]]
        made.add(tuple(output.ids[0]))
    assert len(made) > 2  # the prompts do matter


@pytest.mark.parametrize("tied", [True, False])
def test_lm_cache_equals_recomputation(build: Build, tied: bool) -> None:
    model = build(head="lm", tie_word_embeddings=tied)
    made = set()
    for prompt in PROMPTS:
        expected = plain_generate(model, prompt, 10)
        assert model.generate([prompt], max_new_tokens=10).ids == [expected]
        made.add(tuple(expected))
    assert len(made) > 3


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({"head": "lm"}, {}),
        ({"head": "lm"}, {"temperature": 1.0}),
        ({}, {"stagger": 0.5}),
        ({"denoiser": "matched_filter", "slot_embedding": True}, {"guidance_form": "logit", "void": "nearest"}),
        ({"denoiser": "codebook"}, {"guidance_low": 0.3, "guidance_high": 0.8, "solver": "dpmpp_2m", "stagger": 0.3}),
        ({"denoiser": "codebook"}, {"guidance_form": "token", "time_grid": "shifted"}),
        ({"denoiser": "codebook"}, COMMIT | {"threshold": 0.3, "temperature": 0.5}),
        ({"denoiser": "matched_filter"}, COMMIT | {"order": "surest", "slots_per_call": 2}),
        ({}, COMMIT | {"temperature": 1.0, "guidance_scale": 1.0}),
    ],
)
def test_batch_and_padding_change_nothing(build: Build, options: dict, sampling: dict) -> None:
    model = build(**options)
    settings = {"max_new_tokens": 13, "num_steps": 4, "guidance_scale": 2.0, "seed": 8, **sampling}
    alone = [model.generate([p], example_ids=[i], **settings) for i, p in enumerate(PROMPTS)]
    together = model.generate(PROMPTS, **settings)
    assert together.ids == [output.ids[0] for output in alone]
    assert together.calls == [output.calls[0] for output in alone]
    shuffled = [6, 2, 8, 0]
    beside_long = model.generate([*(PROMPTS[i] for i in shuffled), [5] * 50], example_ids=[*shuffled, 77], **settings)
    assert beside_long.ids[:4] == [together.ids[i] for i in shuffled]
    assert len({tuple(ids) for ids in together.ids}) > 3


@pytest.mark.parametrize("lengths", [[4, 4], [3, 8]])  # without padding no mask is built
def test_a_context_carried_by_the_cache_is_that_of_a_full_pass(build: Build, lengths: list[int]) -> None:
    model, contexts = build(), []
    prepare = model.head.prepare_sampling
    model.head.prepare_sampling = lambda context, *given: contexts.append(context) or prepare(context, *given)
    model.config.end_token_id = -1
    prompts = [PROMPTS[length - 1] for length in lengths]
    made = model.generate(prompts, max_new_tokens=12, num_steps=2, guidance_scale=1.0).ids
    with torch.no_grad():
        for block, found in enumerate(contexts):
            for row, prompt in enumerate(prompts):
                expected = next_context(model, prompt + made[row][: 4 * block])[0]
                torch.testing.assert_close(found[row], expected, rtol=0, atol=2e-6)
    assert len(contexts) == 3


def test_noise_belongs_to_seed_and_example(build: Build) -> None:
    model, settings = build(), {"max_new_tokens": 8, "num_steps": 3, "guidance_scale": 1.0}
    same = model.generate([[1, 2]] * 3, example_ids=[5, 5, 6], seed=1, **settings).ids
    assert same[0] == same[1] != same[2]
    assert model.generate([[1, 2]], example_ids=[5], seed=2, **settings).ids[0] != same[0]


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_rows_stop_at_the_end_token(build: Build, head: str) -> None:
    model = build(head=head)
    settings = {"max_new_tokens": 14, "num_steps": 3, "guidance_scale": 1.0, "seed": 4}
    settings["temperature"] = float(head == "lm")
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
    model, settings = build(), {"max_new_tokens": 10, "num_steps": 2, "guidance_scale": 3.0, "trace": True}
    model.config.end_token_id = -1  # no row ends by itself
    streamed: dict[int, list[int]] = {0: [], 1: []}
    sizes, states = [], []
    for step in model.stream(PROMPTS[2:4], **settings):
        assert step.calls == [4, 4]  # 2K with guidance
        sizes.append([len(ids) for ids in step.ids])
        states.append(step.states)
        for row, ids in zip(step.rows, step.ids, strict=True):
            streamed[row] += ids
    output = model.generate(PROMPTS[2:4], **settings)
    assert list(streamed.values()) == output.ids
    assert sizes == [[4, 4], [4, 4], [2, 2]]
    for row, blocks in enumerate(output.states):
        assert all(torch.equal(block, step[row]) for block, step in zip(blocks, states, strict=True))


def test_streaming_works_a_block_ahead_of_nobody(build: Build) -> None:
    model, passes = build(), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    model.config.end_token_id = -1
    blocks = model.stream([[1, 2]], max_new_tokens=400, num_steps=1)
    assert len(list(itertools.islice(blocks, 2))) == 2
    assert len(passes) <= 3


def test_head_calls_are_k_batched_ones(build: Build) -> None:
    model, seen = build(), []
    model.head.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), args[1].flatten().tolist())))
    model.generate([[1], [2]], max_new_tokens=4, num_steps=4, guidance_scale=9.0)
    assert seen == [(4, [t] * 4) for t in (1.0, 0.75, 0.5, 0.25)]
    seen.clear()
    model.generate([[1], [2]], max_new_tokens=4, num_steps=2, guidance_scale=1.0)
    assert seen == [(2, [1.0] * 4), (2, [0.5] * 4)]
    seen.clear()
    model.generate([[1], [2]], max_new_tokens=4, num_steps=7, guidance_scale=1.0, stagger=1.0)
    assert [rows for rows, _ in seen] == [2] * 7
    assert seen[1][1] == pytest.approx([3 / 7, 1, 1, 1])


def test_one_step_is_the_sign_of_the_first_estimate(build: Build) -> None:
    model = build()
    model.config.end_token_id = -1
    for stagger in (0.0, 1.0):
        made = model.generate(
            [[1, 2]], max_new_tokens=4, num_steps=1, guidance_scale=1.0, stagger=stagger, seed=3, example_ids=[0]
        )
        assert made.ids == [plain_generate(model, [1, 2], 4)]
        assert made.calls == [1]


def test_guidance_of_one_is_the_path_without(build: Build) -> None:
    """Also where the null branch would answer nonsense: it is not asked."""
    model, settings = build(), {"max_new_tokens": 12, "num_steps": 5, "guidance_scale": 1.0}
    expected = model.generate(PROMPTS, **settings)
    with torch.no_grad():
        model.head.null_context.fill_(math.nan)
    again = model.generate(PROMPTS, **settings)
    assert again.ids == expected.ids
    assert again.calls == expected.calls == [5 * blocks for blocks in expected.blocks]


@pytest.mark.parametrize("sampling", [{"num_steps": 6}, {"sampler": "commit", "threshold": 0.05}])
def test_a_trace_ends_in_the_output(build: Build, sampling: dict) -> None:
    model = build(vocab_size=64, denoiser="matched_filter")  # 64 of 64 corners are tokens
    model.config.end_token_id = -1
    settings = {"max_new_tokens": 12, "guidance_scale": 1.5, **sampling}
    traced = model.generate(PROMPTS, trace=True, **settings)
    plain = model.generate(PROMPTS, **settings)
    assert traced.ids == plain.ids
    assert plain.states == [[] for _ in PROMPTS]
    for row in range(len(PROMPTS)):
        assert traced.calls[row] == sum(2 * (len(states) - 1) for states in traced.states[row])
        for block, states in enumerate(traced.states[row]):
            assert torch.equal(states[0], sample_noise(0, row, block, 4, 6))
            values = [int("".join("1" if x > 0 else "0" for x in slot), 2) for slot in states[-1].tolist()]
            assert traced.ids[row][4 * block : 4 * block + 4] == values


@torch.no_grad()
def plain_commit(
    model: BitLMForCausalLM, prompt: list[int], tokens: int, temperature: float = 0.0, **guided
) -> list[int]:
    """Token commitment from the left, slot by slot, from the posterior's log p of every token."""
    m, B, V = model.config.block_size, model.config.num_bits, model.config.vocab_size
    made: list[int] = []
    for block in range(tokens // m):
        context, noise = next_context(model, prompt + made), sample_noise(3, 0, block, m, B)
        shown, t = noise[None].clone(), torch.ones(1, m)
        for slot in range(m):
            ids = torch.arange(V)[:, None].expand(V, m)

            def log_p(block: BlockState, shown=shown, t=t, slot=slot, ids=ids) -> torch.Tensor:
                posterior = model.head(shown.expand(V, m, B), t, model.head_constants(), block.repeat(V))
                return posterior.log_prob(ids)[:, slot].double()

            scores = log_p(prepare(model, context))
            if omega := guided.get("omega"):
                null = log_p(prepare_null(model, 1))
                scores = null + omega * (scores - null)
            token = int(scores.argmax())
            if temperature:
                below = (scores / temperature).softmax(0).cumsum(0)
                token = int((below <= token_uniform(3, 0, block * m + slot)).sum())
            made.append(token)
            shown[0, slot], t[0, slot] = encode(torch.tensor(token), B), 0.0
    return made


@pytest.mark.parametrize(
    ("options", "temperature", "omega"),
    [
        ({}, 0.0, None),
        ({"denoiser": "codebook"}, 0.0, None),
        ({"denoiser": "codebook"}, 1.0, None),
        ({"denoiser": "matched_filter", "context_path": "direct"}, 0.6, 2.0),
        ({"denoiser": "codebook"}, 0.0, 3.0),
        ({"denoiser": "codebook", "attention": "causal"}, 0.0, None),
        ({"denoiser": "codebook", "attention": "causal"}, 1.0, 2.0),
        ({"denoiser": "matched_filter", "attention": "causal"}, 1.0, None),
    ],
)
def test_commitment_is_a_loop_over_tokens(build: Build, options: dict, temperature: float, omega: float | None) -> None:
    """One by one, also with the uniform numbers that the LM head takes at the same places."""
    model = build(**options)
    model.config.end_token_id = -1
    settings = {"sampler": "commit", "temperature": temperature, "guidance_scale": omega, "seed": 3}
    made = set()
    for prompt in PROMPTS[:3]:
        output = model.generate([prompt], max_new_tokens=8, **settings)
        assert output.ids == [plain_commit(model, prompt, 8, temperature, omega=omega)]
        assert output.calls == [16 if omega else 8]
        made.add(tuple(output.ids[0]))
    assert len(made) > 1


def test_a_threshold_spares_calls(build: Build) -> None:
    model = build(denoiser="matched_filter")
    model.config.end_token_id = -1
    settings = {"max_new_tokens": 12, "sampler": "commit"}
    plain = model.generate(PROMPTS, **settings)
    never = model.generate(PROMPTS, threshold=1.0, **settings)
    assert (never.ids, never.calls, never.saved) == (plain.ids, plain.calls, [0] * len(PROMPTS))
    assert plain.calls == [12] * len(PROMPTS)
    at_once = model.generate(PROMPTS, threshold=0.0, **settings)
    assert at_once.calls == at_once.blocks == [3] * len(PROMPTS)
    soon = model.generate(PROMPTS, threshold=0.2, **settings)
    assert 0 < sum(soon.saved) < sum(at_once.saved)
    for calls, saved in zip(soon.calls, soon.saved, strict=True):
        assert calls + saved == 12


def test_the_lm_head_ignores_the_sampler_of_the_other(build: Build) -> None:
    model, settings = build(head="lm"), {"max_new_tokens": 8, "temperature": 1.0, "seed": 2}
    others = {"sampler": "commit", "slots_per_call": 3, "threshold": 0.5, "guidance_scale": 3.0}
    assert model.generate(PROMPTS, **settings, **others) == model.generate(PROMPTS, **settings)


def test_lm_sampling_follows_the_softmax(build: Build) -> None:
    model, n = build(head="lm"), 3000
    with torch.no_grad():
        logits = model.head(next_context(model, [1, 2]), model.model.embed_tokens.weight)[0, 0]
    model.config.end_token_id = -1
    made = model.generate([[1, 2]] * n, max_new_tokens=1, temperature=2.0)
    counts = torch.bincount(torch.tensor([ids[0] for ids in made.ids]), minlength=50)
    expected = (logits / 2).softmax(-1)
    assert (counts / n - expected).abs().sum() / 2 < 0.06


@pytest.mark.parametrize("void", ["clamp", "nearest"])
def test_the_head_sees_codes_of_real_tokens_only_and_the_trace_ends_on_them(build: Build, void: str) -> None:
    """With 33 tokens of 6 bits nearly half of the corners are void."""
    model = build(vocab_size=33, end_token_id=32, pad_token_id=32)
    real = {tuple(code) for code in encode(torch.arange(33), 6).tolist()}
    shown = set()

    def watch(_module: torch.nn.Module, args: tuple) -> None:
        noisy, t = args[:2]
        shown.update(tuple(code) for code in noisy[:, t[0] == 0].flatten(0, 1).tolist())

    model.head.register_forward_pre_hook(watch)
    model.config.end_token_id = -1
    output = model.generate(PROMPTS, max_new_tokens=12, num_steps=8, stagger=1.0, void=void, trace=True)
    assert len(shown) > 10
    assert shown <= real
    for ids, blocks in zip(output.ids, output.states, strict=True):
        ends = torch.cat([states[-1].sign() for states in blocks])
        assert torch.equal(ends, encode(torch.tensor(ids), 6))
