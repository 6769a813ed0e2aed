"""BrierLM of a pretrained model, on the text that it was pretrained on. Batches are written here, without Ray."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import draft, make
from made_tokens import make_tokens, stream
from rich.console import Console
from small_models import small_model

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import TokenizerConfig, configure
from bitlm.data.shards import tokenizer as tokenizers
from bitlm.data.sources.corpus import Corpus, Summaries, parquet_bytes, write_owned
from bitlm.errors import ArtifactError, ConfigError
from bitlm.evaluate import brier
from bitlm.model import BitLMForCausalLM
from bitlm.steps import Step
from bitlm_tasks import evaluate
from bitlm_tasks.prediction_worker import PredictionWorker
from bitlm_tasks.run import Run

LENGTH = 16  # tokens of a sequence
DOCUMENTS = [[[(7 * i * i + 3 * i) % 250 + 2 for i in range(40)], [5, 6, 7]], [[i + 20 for i in range(37)]]]
SEQUENCES = [
    tokens[start : start + LENGTH] for tokens in map(stream, DOCUMENTS) for start in range(0, len(tokens) - 15, LENGTH)
]
SETTINGS = [
    "evaluate.brier_blocks=1000",
    "evaluate.sampler=descent",
    "evaluate.num_steps=3",
    "evaluate.stagger=0",
    "evaluate.bootstrap_samples=20",
    "evaluate.seed=6",
    "prompt.max_summary_tokens=4",
    "prompt.max_prompt_tokens=40",
    "evaluate.execution.batch_size=10",
    "pretrain.sequence_length=512",  # not that of the models
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    store = Store(str(tmp_path_factory.mktemp("store")))
    config = TokenizerConfig(vocab_size=300)
    data = tokenizers.train(["Return the value of an item as text, when none is given."], config)
    info = tokenizers.describe(data, config)
    files = {"tokenizer.json": data, "tokenizer_info.json": info.model_dump_json().encode()}
    tokenizer, other = (make(store, draft("tokenizer", name, {"name": name}), files) for name in ("few", "other"))
    text = {"train": DOCUMENTS, "num_bits": info.num_bits}
    tokens = {
        name: make_tokens(store, validation=validation, name=name, inputs={"tokenizer": of}, **text)
        for name, validation, of in (
            ("tiny", DOCUMENTS, tokenizer),
            ("foreign", DOCUMENTS, other),
            ("none", [], tokenizer),
        )
    }
    models = {head: _model(store, head, info, tokenizer, files) for head in ("lm", "diffusion")}
    return SimpleNamespace(store=store, corpus=_corpus(store), tokenizer=tokenizer, tokens=tokens, models=models)


def _model(store: Store, head: str, info: Any, tokenizer: Record, beside: dict[str, bytes]) -> Record:
    of = draft("pretrain", head, identity={"head": head, "sequence_length": LENGTH}, inputs={"tokenizer": tokenizer})
    work = store.begin(of.stage, of.name, of.fingerprint)
    shape = {"vocab_size": info.vocab_size, "num_bits": info.num_bits, "embedding_rows": 384}
    small_model(head=head, end_token_id=info.end_id, **shape).save_pretrained(storage.join(work.out, "model"))
    for path, data in beside.items():
        storage.write_atomic(storage.join(work.out, "model", path), data)
    return store.commit(work, of)


def _corpus(store: Store) -> Record:
    of = draft("corpus", "few")
    work = store.begin(of.stage, of.name, of.fingerprint)
    examples = pa.Table.from_pylist([{"document": "An item.", "summary": "Return it.", "id": str(i)} for i in range(3)])
    file = write_owned(parquet_bytes(examples), work.out, "summaries/test.parquet", ("document", "summary", "id"))
    summaries = Summaries(train=(), validation=(), test=(file,), hash_split=False)
    shape = {"kind": "owned", "files": (), "text_column": "text", "id_column": "id", "validation_fraction": 0.1}
    storage.write_atomic(storage.join(work.out, "source.json"), Corpus(**shape, summaries=summaries).to_json())
    return store.commit(work, of)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Workers in this process; returns the batches that they were given."""
    items: list[dict[str, Any]] = []

    def counts(worker: tuple[Any, ...], settings: Any, given: list[dict[str, Any]]) -> Iterator[int]:
        items.extend(given)
        for item in given:
            answer = PredictionWorker(*worker)(pa.Table.from_pylist([item])).to_pylist()[0]
            assert not answer["error"], answer["error"]
            yield answer["count"]

    monkeypatch.setattr(evaluate, "_counts", counts)
    monkeypatch.setattr(evaluate, "check_room", lambda demand: None)
    monkeypatch.setattr(Run, "ray", lambda self: None)
    return items


def evaluation(made: SimpleNamespace, head: str, tokens: str = "tiny", *assignments: str) -> tuple[Step, Run]:
    run = Run(made.store, configure("tiny", [*SETTINGS, *assignments]), console=Console(quiet=True))
    run.progress = SimpleNamespace(update=lambda fraction, text: None)
    inputs = {"model": made.models[head], "corpus": made.corpus, "tokenizer": made.tokenizer}
    inputs["tokens"] = made.tokens[tokens]
    return Step("evaluate", f"{head}-{tokens}", {"system": "model", "head": head}, {}, inputs), run


def written(folder: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, "continuations.parquet")))).to_pylist()
    return rows, json.loads(storage.read_bytes(storage.join(folder, "scores.json")))["brier"]


@pytest.mark.parametrize("head", ["lm", "diffusion"])
def test_a_pretrained_model_continues_the_validation_text(made: SimpleNamespace, head: str) -> None:
    step, run = evaluation(made, head)
    work = made.store.begin("evaluate", head, step.fingerprint)
    metrics = evaluate.build(step, run, work)
    rows, scores = written(work.out)
    work.remove()
    with made.store.local_folder(made.models[head], "model") as folder:
        model = BitLMForCausalLM.load(folder).eval()
    end = model.config.end_token_id
    assert [(row["sequence"], row["prompt_tokens"]) for row in rows] == [
        (number, length) for number in range(len(SEQUENCES)) for length in (4, 8, 12)
    ]
    options = {"max_new_tokens": 4, "seed": 6} | ({"temperature": 1.0} if head == "lm" else {"num_steps": 3})
    for number, row in enumerate(rows):
        sequence, cut = SEQUENCES[row["sequence"]], row["prompt_tokens"]
        assert row["truth"] == _filled(sequence[cut : cut + 4], end)
        for sample, name in enumerate(("first", "second")):
            ids = model.generate([sequence[:cut]], example_ids=[2 * number + sample], **options).ids[0]
            assert row[name] == (ids + 4 * [end])[:4]
    columns = [np.array([row[name] for row in rows]) for name in ("first", "second", "truth", "sequence")]
    expected = brier.score(*columns, samples=20, seed=6)
    sampler = "temperature 1" if head == "lm" else "descent K=3 ω=9"
    assert scores == expected | {"text": "held-out text", "sampler": sampler}
    assert {name: metrics[name] for name in brier.NAMES} == {name: expected[name]["value"] for name in brier.NAMES}


def _filled(ids: list[int], end: int) -> list[int]:
    return [end if end in ids[: i + 1] else token for i, token in enumerate(ids)]


def test_what_is_written_stays_when_the_work_goes_on(made: SimpleNamespace, here: list[dict[str, Any]]) -> None:
    step, run = evaluation(made, "lm")
    work = made.store.begin("evaluate", "again", step.fingerprint)
    evaluate.build(step, run, work)
    rows = written(work.out)
    assert [item["kind"] for item in here] == ["texts", *["blocks"] * (len(here) - 1)]
    assert all(len(item["rows"]) <= 5 for item in here[1:])  # each is sampled twice
    lost = min(here[2]["rows"], key=str)
    part = next(path for path in sorted(storage.list_files(work.scratch)) if f"{here[2]['rows'][0]:09d}" in path)
    Path(work.scratch, part).unlink()
    here.clear()
    evaluate.build(step, run, work)
    assert len(here) == 1
    assert lost in here[0]["rows"]
    assert written(work.out) == rows
    work.remove()


def test_text_that_cannot_be_continued_is_refused(made: SimpleNamespace) -> None:
    for tokens, error, message in (
        ("foreign", ArtifactError, r"tokens/foreign@v1 was made with tokenizer/other@v1, not with tokenizer/few@v1"),
        ("none", ConfigError, r"tokens/none@v1 holds no validation sequence of 16 tokens.*evaluate\.brier_blocks = 0"),
    ):
        step, run = evaluation(made, "lm", tokens)
        work = made.store.begin("evaluate", "refused", step.fingerprint)
        with pytest.raises(error, match=message):
            evaluate.build(step, run, work)
        work.remove()


def test_no_blocks_no_brier(made: SimpleNamespace) -> None:
    step, run = evaluation(made, "lm", "tiny", "evaluate.brier_blocks=0")
    del step.inputs["tokens"]
    work = made.store.begin("evaluate", "off", step.fingerprint)
    metrics = evaluate.build(step, run, work)
    assert storage.list_files(work.out) == ["predictions.parquet", "scores.json"]
    assert "brier" not in json.loads(storage.read_bytes(storage.join(work.out, "scores.json")))
    assert not [name for name in metrics if "brier" in name]
    work.remove()
