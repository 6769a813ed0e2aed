import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_models import commit, write, write_corpus, write_model
from rich.console import Console

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import TokenizerConfig, configure
from bitlm.data.shards import tokenizer as tokenizers
from bitlm.data.shards.tokenizer import TextTokenizer
from bitlm.data.summaries.examples import Example
from bitlm.data.summaries.prompts import encode_prompts, encode_summaries
from bitlm.errors import ArtifactError, ConfigError, SourceError
from bitlm.evaluate import rouge
from bitlm.evaluate.predictions import Predictor, batches
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.steps import Step
from bitlm_tasks import evaluate
from bitlm_tasks.prediction_worker import PredictionWorker
from bitlm_tasks.run import Run

pytestmark = pytest.mark.usefixtures("ray_session")

WORDS = [
    "return",
    "the",
    "value",
    "of",
    "an",
    "item",
    "as",
    "text",
    "when",
    "none",
    "is",
    "given",
    "raise",
    "error",
    "else",
]
EXAMPLES = [
    Example(
        f"Item {i}. The " + " ".join(WORDS[(i * k) % len(WORDS)] for k in range(3 + 5 * (i % 4))) + ".",
        f"Return item {i}.",
        f"id-{i}",
    )
    for i in range(10)
]
SETTINGS = [
    "evaluate.sampler=descent",
    "evaluate.num_steps=3",
    "evaluate.guidance_scale=2.0",
    "evaluate.guidance_form=logit",
    "evaluate.time_grid=shifted",
    "evaluate.time_shift=2.0",
    "evaluate.stagger=0.5",
    "evaluate.void=nearest",
    "evaluate.bootstrap_samples=20",
    "prompt.max_summary_tokens=12",
    "prompt.max_prompt_tokens=40",
    "evaluate.execution.cpus_per_actor=1",
    "evaluate.examples=null",
    "evaluate.brier_blocks=0",
]


@dataclasses.dataclass
class Made:
    store: Store
    corpus: Record
    tokenizer: Record
    models: dict[str, Record]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A corpus of ten examples, a tokenizer for it, and a random model with each head."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    corpus = commit(store, "corpus", "few", {}, {}, lambda out: write_corpus(out, EXAMPLES))
    section = TokenizerConfig(vocab_size=300)
    data = tokenizers.train([example.document for example in EXAMPLES], section)
    info = tokenizers.describe(data, section)
    parts = {"tokenizer.json": data, "tokenizer_info.json": info.model_dump_json().encode()}
    tokenizer = commit(store, "tokenizer", "few", {}, {}, lambda out: write(out, parts))
    models = {}
    for head in ("diffusion", "lm"):
        config = BitLMConfig(
            head=head,
            vocab_size=info.vocab_size,
            embedding_rows=384,
            num_bits=info.num_bits,
            end_token_id=info.end_id,
            block_size=4 if head == "diffusion" else 1,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            diffusion_head={"num_layers": 2, "head_dim": 16, "denoiser": "matched_filter"},
        )
        models[head] = commit(
            store,
            "finetune",
            f"few-{head}",
            {"head": head},
            {"tokenizer": tokenizer},
            lambda out, c=config: write_model(out, c, parts),
        )
    return Made(store, corpus, tokenizer, models)


class Watcher:
    """Stands in for the progress line; calls ``then`` once, at the first batch that is done, after the start."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.then = then
        self.fractions: list[float] = []

    def update(self, fraction: float, text: str) -> None:
        self.fractions.append(fraction)
        if len(self.fractions) == 2:
            self.then()


def evaluation(
    made: Made, system: str, *assignments: str, name: str = "x", sampler: dict[str, Any] | None = None
) -> tuple[Step, Run]:
    """``sampler``: settings of the step that are not those of the configuration."""
    config = configure("tiny", [*SETTINGS, *assignments])
    identity = {"system": "lead" if system == "lead" else "model", "head": system, **(sampler or {})}
    inputs = {"corpus": made.corpus}
    if system != "lead":
        inputs |= {"model": made.models[system], "tokenizer": made.tokenizer}
    run = Run(made.store, config, console=Console(quiet=True))
    run.progress = Watcher()
    return Step("evaluate", name, identity, {}, inputs), run


def built(made: Made, system: str, *assignments: str, name: str, **options: Any) -> dict[str, bytes]:
    """The files of one evaluation, which is then thrown away."""
    step, run = evaluation(made, system, *assignments, name=name, **options)
    work = made.store.begin("evaluate", name, step.fingerprint)
    try:
        evaluate.build(step, run, work)
        return files(work.out)
    finally:
        work.remove()


def parts(folder: str) -> dict[str, int]:
    """When each part was written."""
    return {path: Path(folder, path).stat().st_mtime_ns for path in storage.list_files(folder)}


def files(folder: str) -> dict[str, bytes]:
    return {path: storage.read_bytes(storage.join(folder, path)) for path in storage.list_files(folder)}


def direct(made: Made, head: str) -> list[tuple[int, str, int, int, int]]:
    """(prompt tokens, text, head calls, new tokens, blocks) of every example, one at a time and without Ray."""
    config = evaluation(made, head)[1].config
    with made.store.local_folder(made.models[head], "model") as folder:
        model, tokenizer = BitLMForCausalLM.load(folder).eval(), TextTokenizer.load(folder)
    found = []
    for row, prompt in enumerate(encode_prompts(tokenizer, [example.document for example in EXAMPLES], config.prompt)):
        output = model.generate(
            [prompt],
            max_new_tokens=config.prompt.max_summary_tokens,
            num_steps=3,
            guidance_scale=2.0,
            guidance_form="logit",
            time_grid="shifted",
            time_shift=2.0,
            stagger=0.5,
            void="nearest",
            seed=config.evaluate.seed,
            example_ids=[row],
        )
        text, tokens = tokenizer.decode(output.ids[0]).strip(), len(output.ids[0]) + int(output.ended[0])
        found.append((len(prompt), text, output.calls[0], tokens, output.blocks[0]))
    return found


def assert_direct(made_files: dict[str, bytes], made: Made, head: str) -> None:
    """Every row is what ``direct`` says, and the scores are those of the rows."""
    assert sorted(made_files) == ["predictions.parquet", "scores.json"]
    assert_texts_direct(made_files, made, head)


def assert_texts_direct(made_files: dict[str, bytes], made: Made, head: str) -> None:
    rows = table(made_files["predictions.parquet"])
    assert [(row["row"], row["id"], row["reference"]) for row in rows] == [
        (i, e.id, e.summary) for i, e in enumerate(EXAMPLES)
    ]
    shown = "prompt_tokens", "text", "steps", "new_tokens", "blocks"
    assert [tuple(row[name] for name in shown) for row in rows] == direct(made, head)
    scores = json.loads(made_files["scores.json"])
    scores.pop("brier", None)
    texts, references = ([row[column] for row in rows] for column in ("text", "reference"))
    assert scores == rouge.score(texts, references, samples=20, seed=0)
    values = [[row[measure] for measure in rouge.MEASURES] for row in rows]
    assert values == rouge.score_pairs(texts, references).tolist()


def table(data: bytes) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(data)).to_pylist()


def test_the_example_texts_can_tell_a_fault(made: Made) -> None:
    for head, calls in (("diffusion", 6), ("lm", 1)):  # 2K for each block, or one for each token
        found = direct(made, head)
        lengths, texts, steps, tokens, blocks = zip(*found, strict=True)
        assert len(set(texts)) > 5
        assert len(set(lengths)) > 2
        assert list(steps) == [calls * count for count in blocks]
        m = 4 if head == "diffusion" else 1
        assert all(m * (count - 1) < new <= m * count for new, count in zip(tokens, blocks, strict=True))


def test_batches_and_actors_change_nothing_and_the_sampler_is_the_steps(made: Made) -> None:
    settings = "evaluate.execution.batch_size=3", "evaluate.execution.num_actors=2"
    others = "evaluate.num_steps=9", "evaluate.stagger=0.1"
    sampler = evaluation(made, "diffusion")[1].config.evaluate.sampler_identity()
    found = built(
        made, "diffusion", *settings, *others, "evaluate.brier_blocks=9", name="few-diffusion", sampler=sampler
    )
    assert_texts_direct(found, made, "diffusion")
    assert_blocks_direct(found, made)


def assert_blocks_direct(made_files: dict[str, bytes], made: Made) -> None:
    """Nine blocks of the references, each sampled twice as if it were alone."""
    config = evaluation(made, "diffusion")[1].config
    with made.store.local_folder(made.models["diffusion"], "model") as folder:
        model, tokenizer = BitLMForCausalLM.load(folder).eval(), TextTokenizer.load(folder)
    prompts = encode_prompts(tokenizer, [example.document for example in EXAMPLES], config.prompt)
    summaries = encode_summaries(tokenizer, [example.summary for example in EXAMPLES], config.prompt)
    end = tokenizer.info.end_id
    options = {"num_steps": 3, "guidance_scale": 2.0, "guidance_form": "logit", "time_grid": "shifted"}
    options |= {"time_shift": 2.0, "stagger": 0.5, "void": "nearest", "max_new_tokens": 4}
    rows, figures = table(made_files["continuations.parquet"]), json.loads(made_files["scores.json"])["brier"]
    assert (len(rows), figures["blocks"], figures["text"]) == (9, 9, "reference summaries")
    for number, row in enumerate(rows):
        prompt, summary = prompts[row["sequence"]], summaries[row["sequence"]]
        place = row["prompt_tokens"] - len(prompt)
        assert place % 4 == 0 <= place < len(summary)
        assert row["truth"] == (summary[place:] + 3 * [end])[:4]
        for sample, name in enumerate(("first", "second")):
            ids = model.generate([prompt + summary[:place]], example_ids=[2 * number + sample], **options).ids[0]
            assert row[name] == (ids + 4 * [end])[:4]
    assert len({(row["sequence"], row["prompt_tokens"]) for row in rows}) == 9
    assert any(row["first"] != row["second"] for row in rows)


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_a_predictor_answers_for_a_whole_batch_as_for_each(made: Made, head: str) -> None:
    config = evaluation(made, head)[1].config
    with made.store.local_folder(made.models[head], "model") as folder:
        tokenizer = TextTokenizer.load(folder)
    prompts = encode_prompts(tokenizer, [example.document for example in EXAMPLES], config.prompt)
    rows = [7, 2, 9, 0, 1, 8, 5, 3]
    predictor = Predictor(made.store.root, made.models[head].id)
    texts, output = predictor.texts(
        rows, [prompts[row] for row in rows], config.prompt.max_summary_tokens, config.evaluate
    )
    alone = direct(made, head)
    assert list(zip(texts, output.calls, strict=True)) == [alone[row][1:3] for row in rows]


def test_calls_that_a_threshold_spares_are_counted(made: Made) -> None:
    at_default = "num_steps=15", "time_grid=uniform", "time_shift=3", "stagger=0", "void=clamp"
    sampler = "sampler=commit", "threshold=0.001", "guidance_form=token", *at_default
    config = evaluation(made, "diffusion", *(f"evaluate.{setting}" for setting in sampler))[1].config
    predictor = Predictor(made.store.root, made.models["diffusion"].id)
    output = predictor.texts([4, 5], [[7, 8], [9]], 12, config.evaluate)[1]
    assert all(output.saved)
    assert [a + b for a, b in zip(output.calls, output.saved, strict=True)] == [8 * blocks for blocks in output.blocks]


def test_what_is_interrupted_goes_on_and_a_killed_worker_is_replaced(made: Made) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    killed = []

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if "PredictionWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)

    step, run = evaluation(made, "diffusion", "evaluate.execution.batch_size=2", name="interrupted")
    work = made.store.begin("evaluate", "interrupted", step.fingerprint)
    run.progress = Watcher(interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate.build(step, run, work)
    work.release()
    before = parts(work.scratch)
    assert before
    assert not storage.list_files(work.out)
    work = made.store.begin("evaluate", "interrupted", step.fingerprint)
    for path in sorted(before)[1:]:  # leave one, however many were done before the interruption was felt
        Path(work.scratch, path).unlink()
    run.progress = Watcher(kill)
    evaluate.build(step, run, work)
    assert killed
    kept = sorted(before)[0]
    assert parts(work.scratch)[kept] == before[kept]
    # The start, at most the four batches that were missing (a worker may finish one after the interruption), and the
    # scoring.
    assert 3 <= len(run.progress.fractions) <= 6
    assert run.progress.fractions[-2:] == [1.0, 1.0]
    assert_direct(files(work.out), made, "diffusion")
    work.remove()


def test_batches_are_alike_in_length_and_leave_finished_ones_out() -> None:
    lengths = [5, 9, 1, 9, 7, 3]
    whole = batches(lengths, set(), 2)
    assert whole == [[1, 3], [4, 0], [5, 2]]
    assert batches(lengths, {4, 0}, 2) == [[1, 3], [5, 2]]
    assert batches(lengths, set(range(6)), 2) == []


def test_the_lead_baseline_needs_no_model(made: Made) -> None:
    made_files = built(made, "lead", name="lead")
    rows = table(made_files["predictions.parquet"])
    assert [row["text"] for row in rows] == [f"Item {i}." for i in range(10)]
    assert all(row["steps"] == 0 and row["prompt_tokens"] is row["new_tokens"] is None for row in rows)
    assert json.loads(made_files["scores.json"])["examples"] == 10


def test_only_the_configured_examples_are_scored(made: Made) -> None:
    rows = table(built(made, "lead", "evaluate.examples=3", name="three")["predictions.parquet"])
    assert [row["id"] for row in rows] == ["id-0", "id-1", "id-2"]


def test_a_split_without_examples_is_an_error(made: Made) -> None:
    with pytest.raises(SourceError, match=r"corpus/few@v1 has no example in its validation split"):
        built(made, "lead", "evaluate.split=validation", name="none")


def test_a_damaged_model_is_refused_by_name_in_the_worker(made: Made) -> None:
    path = Path(made.store.url(made.models["lm"].id, "model", "model.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    step, run = evaluation(made, "lm", name="damaged")
    run.verified |= {made.models["lm"].id}  # the damage comes after the driver's look
    work = made.store.begin("evaluate", "damaged", step.fingerprint)
    try:
        with pytest.raises(ArtifactError, match=r"finetune/few-lm@v1: model/model\.safetensors"):
            evaluate.build(step, run, work)
    finally:
        path.write_bytes(whole)
        work.remove()


@pytest.mark.skipif(torch.cuda.is_available(), reason="Ray's GPU is there")
def test_a_gpu_that_torch_cannot_use_is_refused_by_the_actor(made: Made) -> None:
    """Ray has a GPU to give, so that Ray Data starts an actor on it."""
    with pytest.raises(ConfigError, match=r"^evaluate\.execution\.use_gpu: Ray gives a worker on .* a GPU, but torch "):
        built(made, "lm", "evaluate.execution.use_gpu=true", name="gpu")


def test_an_actor_whose_gpu_is_full_says_what_to_lower(made: Made) -> None:
    worker = PredictionWorker(made.store.root, made.models["lm"].id, "", 12, evaluation(made, "lm")[1].config.evaluate)

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    worker._predictor = SimpleNamespace(texts=full)
    item = {"kind": "texts", "rows": [0], "prompts": [[1]]}
    answer = worker(pa.Table.from_pylist([item])).to_pylist()[0]
    assert answer["error_type"] == "BitLMError"
    assert answer["error"].endswith("Tried to allocate 2 GiB.): lower evaluate.execution.batch_size")
