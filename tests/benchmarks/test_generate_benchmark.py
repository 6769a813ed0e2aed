"""The benchmark of generation, with small random weights: what it counts, what it compares, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import generate
import generate_models
import generate_samplers
import generate_speed
from made_models import commit, write, write_corpus, write_model
from small_models import SMALL, small_model

from bitlm.artifacts import Store
from bitlm.config import PromptConfig, TokenizerConfig, configure
from bitlm.data.shards import tokenizer as tokenizers
from bitlm.data.summaries.examples import Example
from bitlm.data.summaries.prompts import encode_prompts, encode_summaries
from bitlm.evaluate import brier, rouge
from bitlm.evaluate.continuations import in_summaries, until_end
from bitlm.evaluate.judge import judge
from bitlm.evaluate.predictions import load_model
from bitlm.generation import Sampling
from bitlm.model import BitLMConfig

QUICK = ["--batch", "2", "--seconds", "0"]
WORDS = ["return", "the", "value", "of", "an", "item", "as", "text", "when", "none", "is", "given", "or", "raise"]
PROMPT = PromptConfig(max_prompt_tokens=24, max_summary_tokens=8)
EXAMPLES = [
    Example(" ".join(WORDS[i : i + 7]), " ".join(WORDS[2 * i % 9 : 2 * i % 9 + 4]), f"id-{i}") for i in range(7)
]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, json_file: Path | None = None) -> list[dict[str, Any]]:
    chosen = [*QUICK, *arguments, *(("--json", str(json_file)) if json_file else ())]
    monkeypatch.setattr(sys, "argv", ["generate.py", *chosen])
    generate.main()
    return json.loads(json_file.read_text())["rows"] if json_file else []


def test_calls_and_passes_of_every_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = ["sampler=commit", "sampler=commit,slots_per_call=2,temperature=1", "num_steps=3,guidance_scale=1", ""]
    chosen = [argument for sampler in samplers[:3] for argument in ("--sampler", sampler)]
    sizes = ["--new-tokens", "8", "--prompt-tokens", "4", "--codebook"]
    rows = run(monkeypatch, *chosen, "--sampler", "num_steps=2", *sizes, json_file=tmp_path / "out.json")
    found = [
        (
            row["sampler"],
            row["temperature"],
            *(row["speed"]["2"][f"{name}_per_token"] for name in ("backbone_passes", "head_calls")),
        )
        for row in rows
    ]
    assert found == [
        ("LM head", 0, 1, 1),
        ("commit left, 1 slot per call, greedy", 0, 1 / 4, 1),
        ("descent K=2 ω=9", 0, 1 / 4, 2 * 2 / 4),
        ("LM head", 1, 1, 1),
        ("commit left, 2 slots per call, temperature 1", 1, 1 / 4, 1 / 2),
        ("descent K=3", 1, 1 / 4, 3 / 4),
    ]
    assert all(row["speed"]["2"]["rounds"] == 1 and row["quality"] is None for row in rows)


@pytest.mark.parametrize("m", [1, 4, 6])
def test_every_line_is_a_sampler_of_its_own_behind_its_lm_head(m: int) -> None:
    lines = generate_samplers.lines(generate_samplers.default_options(m), 12, False)
    assert len({(line.name, line.temperature) for line in lines}) == len(lines)
    assert [(line.temperature, line.decoding) for line in lines if line.head == "lm"] == [
        (0, "greedy"),
        (1, "sampled, 1"),
    ]
    temperature = None
    for line in lines:
        temperature = line.temperature if line.head == "lm" else temperature
        assert line.temperature == temperature
        if line.sampling.sampler == "commit":
            assert line.sampling.temperature == temperature


def test_rounds_fill_the_time_and_alternate() -> None:
    now, order = [0.0], []

    def contender(name: str, cost: float):
        def work() -> None:
            order.append(name)
            now[0] += cost

        return work

    both = [contender("lm", 2.0), contender("ours", 1.0)]
    assert generate_speed.alternate(both, 10.0, lambda: now[0]) == [[2.0, 1.0]] * 3  # a fourth would end at 12
    assert order == ["lm", "ours"] * 3
    assert generate_speed.alternate(both, 0.0, lambda: now[0]) == [[2.0, 1.0]]
    assert len(generate_speed.alternate(both, 1000.0, lambda: now[0])) == generate_speed.ROUNDS


def test_a_ratio_is_that_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are slow and fast alike for both: the ratio is 2 in each, that of the medians would be 8 / 3."""
    pair = generate_models.Pair(small_model(), small_model(head="lm"))

    def rounds(contenders, seconds: float) -> list[list[float]]:
        for contender, seconds_after_first in zip(contenders, (7.0, 2.0), strict=True):
            contender()
            assert len(contender.after_first) == 1
            contender.after_first[:] = [seconds_after_first] * 3
        return [[2.0, 1.0], [8.0, 4.0], [8.0, 3.0]]

    monkeypatch.setattr(generate_speed, "alternate", rounds)
    line = generate_samplers.lines([{"sampler": "commit", "slots_per_call": 2}], 8, False)[1]
    found = generate_speed.race(pair, line, [[1, 2, 3], [4]], 1.0)
    assert (found["ratio"], found["tokens_per_second"], found["rounds"]) == (2.0, 2 * 8 / 3.0, 3)
    assert found["ratio_after_first"] == 2.0  # 2·(8 - 4) tokens in 2 s, 2·(8 - 1) in 7 s
    assert (found["head_calls_per_token"], found["backbone_passes_per_token"]) == (1 / 2, 1 / 4)
    assert [model.config.end_token_id for model in (pair.diffusion, pair.lm)] == [SMALL["end_token_id"]] * 2


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_nothing_ends_early(head: str) -> None:
    model = small_model(head=head)
    prompts = [[row] for row in range(12)]
    sampling = Sampling(max_new_tokens=16, sampler="commit", temperature=5.0)
    assert any(model.generate(prompts, sampling=sampling).ended)
    with generate_speed.never_ends(model):
        output = model.generate(prompts, sampling=sampling)
    assert not any(output.ended)
    assert {len(ids) for ids in output.ids} == {16}


def test_the_head_of_tiny_at_another_scale() -> None:
    tiny, large = configure("tiny", []).model, configure("0.6b", generate_models.codebook_settings("0.6b")).model
    assert (large.mask, large.hidden_size, large.head.codebook_rank) == (tiny.mask, 1024, 256)
    for name in ("denoiser", "attention", "context_path", "num_layers"):
        assert getattr(large.head, name) == getattr(tiny.head, name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of a few examples and a random model with each head; ``other-lm`` has another prompt."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    corpus = commit(store, "corpus", "few", {}, {}, lambda out: write_corpus(out, EXAMPLES))
    section = TokenizerConfig(vocab_size=300)
    data = tokenizers.train([example.document for example in EXAMPLES], section)
    info = tokenizers.describe(data, section)
    files = {"tokenizer.json": data, "tokenizer_info.json": info.model_dump_json().encode()}
    tokenizer = commit(store, "tokenizer", "few", {}, {}, lambda out: write(out, files))
    for name, head, separator in (
        ("few-diffusion", "diffusion", None),
        ("few-lm", "lm", None),
        ("other-lm", "lm", "!"),
    ):
        prompt = PROMPT if separator is None else PROMPT.model_copy(update={"separator": separator})
        config = BitLMConfig(
            head=head,
            vocab_size=info.vocab_size,
            embedding_rows=384,
            num_bits=info.num_bits,
            end_token_id=info.end_id,
            block_size=4 if head == "diffusion" else 1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            initialization="scaled",
            diffusion_head={"num_layers": 2, "head_dim": 16, "denoiser": "codebook", "attention": "causal"},
        )
        identity = {"head": head, "prompt": prompt.identity()}
        inputs = {"corpus": corpus, "tokenizer": tokenizer}
        commit(store, "finetune", name, identity, inputs, lambda out, of=config: write_model(out, of, files))
    return Path(store.root)


MODELS = ["--models", "finetune/few-diffusion", "finetune/few-lm"]


def test_quality_is_that_of_the_texts(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Every figure of two samplers again, from texts that are written here without batches."""
    samplers = ["--sampler", "sampler=commit,slots_per_call=2", "--sampler", "sampler=commit,temperature=1"]
    settings = ["--root", str(root), "--blocks", "9", "--text-batch", "3", "--new-tokens", "4"]
    rows = run(monkeypatch, *MODELS, *settings, *samplers, json_file=tmp_path / "out.json")
    (diffusion, tokenizer), (lm, _) = (load_model(str(root), name) for name in MODELS[1:])
    prompts = encode_prompts(tokenizer, [one.document for one in EXAMPLES], PROMPT)
    summaries = encode_summaries(tokenizer, [one.summary for one in EXAMPLES], PROMPT)
    references = [one.summary for one in EXAMPLES]
    lm_values: dict[float, np.ndarray] = {}
    assert [row["temperature"] for row in rows] == [0, 0, 1, 1]
    samplings = [
        {},
        {"sampler": "commit", "slots_per_call": 2},
        {"temperature": 1.0},
        {"sampler": "commit", "temperature": 1.0},
    ]
    for row, options in zip(rows, samplings, strict=True):
        model, quality = (lm if row["head"] == "lm" else diffusion), row["quality"]
        output = model.generate(prompts, max_new_tokens=8, **options)
        values = rouge.score_pairs([tokenizer.decode(ids).strip() for ids in output.ids], references)
        lm_values.setdefault(row["temperature"], values)
        assert list(quality["rouge"].values()) == pytest.approx(values.mean(axis=0))
        assert quality["rouge_difference"] == rouge.paired(values, lm_values[row["temperature"]])
        assert quality["nats"] == pytest.approx(judge(lm, prompts, output.ids, output.ended).nats_per_token)
        tokens = sum(map(len, output.ids)) + sum(output.ended)
        assert quality["head_calls_per_token"] == sum(output.calls) / tokens
        assert ("brier_lm" in quality) == bool(row["temperature"])
    positions = in_summaries(prompts, summaries, tokenizer.info.end_id, 9, 0)
    terms = []
    for model, options in ((lm, {}), (diffusion, {"sampler": "commit"})):
        both = [
            model.generate([prompt], example_ids=[2 * i + j], max_new_tokens=4, temperature=1.0, **options).ids[0]
            for i, prompt in enumerate(positions.prompts)
            for j in range(2)
        ]
        ids = np.array([until_end(block, tokenizer.info.end_id) for block in both])
        terms.append(brier.terms(ids[::2], ids[1::2], positions.truth))
        expected = brier.score(ids[::2], ids[1::2], positions.truth, positions.sequences)["brier_lm"]
        assert rows[1 + len(terms)]["quality"]["brier_lm"] == expected
    assert rows[3]["quality"]["brier_ratio"] == brier.ratio(terms[1], terms[0], positions.sequences)
    told = capsys.readouterr().out
    real = judge(lm, prompts, [ids[:-1] for ids in summaries], [True] * len(summaries)).nats_per_token
    assert f"of the references {real:.2f}" in told
    assert sum(line.count("|") == 12 for line in told.splitlines()) == 2 + 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "device 'gpu': models do not run on it"),
        (["--sampler", "commit"], "'commit' is no option of generation: write KEY=VALUE"),
        (["--sampler", "sampler=commit,num_steps=3"], "num_steps = 3 goes with sampler = descent"),
        (["--sampler", "sampler=commit,slots_per_call=3"], "slots_per_call = 3 does not divide"),
        (["--models", "finetune/few-lm", "finetune/few-diffusion"], "a finetune artifact of the diffusion head"),
        (["--models", "finetune/few-diffusion", "tokenizer/few"], "a finetune artifact of the diffusion head"),
        (["--models", "finetune/few-diffusion", "finetune/other-lm"], "learned from other prompts"),
    ],
)
def test_what_is_refused_is_one_line(
    root: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--root", str(root), *arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
