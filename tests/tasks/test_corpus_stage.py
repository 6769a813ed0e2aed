import gzip
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import FinetuneConfig
from bitlm.data.reading.batches import open_finetune
from bitlm.data.sources import docstrings
from bitlm.data.sources.corpus import load_corpus
from bitlm.data.sources.docstrings import Package, normalized
from bitlm.data.sources.held_out import load_held_out
from bitlm.data.summaries.examples import SUMMARY_SPLITS, read_examples, read_trainable
from bitlm.errors import ConfigError, SourceError
from bitlm_tasks.finetune import _check_enough
from tests.tasks.data_stages import digests, run_stages

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A walk over 12 small files: 20 docstrings each with summary and body, and some more that hold a body of these."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for number in range(12):
        functions = []
        for i in range(20):
            body = (
                f"Function {number * 20 + i} takes the first of its arguments and gives the value that others want\n"
                f"    from it, or else the one that was set by the caller before ({number}, {i})."
            )
            summary = f"Return value {i} of the set {number} of them.\n\n    "
            functions.append(f'def f{i}():\n    """{summary}{body}"""\n')
            if i % 3 == 0:
                functions.append(f'def g{i}():\n    """The other one like it. In words:\n\n    {body} So it is."""\n')
        (folder / f"m{number:02d}.py").write_text("\n".join(functions))
    files = tuple(sorted(path.name for path in folder.iterdir()))
    monkeypatch.setattr(docstrings, "packages", lambda: [Package("thing", "1.0", str(folder), files)])
    original = docstrings.chunks
    monkeypatch.setattr(docstrings, "chunks", lambda found: original(found, files_per_chunk=2))
    return folder


def test_no_test_document_is_in_the_text(packages: Path, tmp_path: Path) -> None:
    record = run_stages(tmp_path / "root", last="corpus")["corpus"]
    store = Store(str(tmp_path / "root"))
    described = load_corpus(store, record)
    assert described.kind == "owned"
    tables = [pq.read_table(io.BytesIO(store.read_bytes(record, file.url))) for file in described.files]
    texts = [text for table in tables for text in table["text"].to_pylist()]
    examples = {split: list(read_examples(store, record, split)) for split in SUMMARY_SPLITS}
    assert all(examples.values())
    assert sum(map(len, examples.values())) == 240
    documents = [normalized(example.document) for example in examples["test"]]
    assert not [text for text in texts if any(document in normalized(text) for document in documents)]
    assert any(normalized(examples["train"][0].document) in normalized(text) for text in texts)
    # 240 docstrings and 84 more that hold a body: what is missing is the test documents and what holds one of them.
    everything = [d.text for d in docstrings.extract(docstrings.packages()[0])]
    left_out = [text for text in everything if any(document in normalized(text) for document in documents)]
    assert len(left_out) == record.metrics["left_out_for_test"] > len(documents)
    assert texts == [text for text in everything if text not in left_out]
    held_out = load_held_out(store, record)
    assert held_out.find([text.encode() for text in everything]).tolist() == [text in left_out for text in everything]
    assert record.metrics["characters"] == sum(map(len, texts))


def test_the_order_in_which_tasks_end_changes_nothing(packages: Path, tmp_path: Path) -> None:
    records = [run_stages(tmp_path / root, last="corpus")["corpus"] for root in ("a", "b")]
    assert digests(records[0]) == digests(records[1])


def test_a_walk_stops_after_so_many_documents(packages: Path, tmp_path: Path) -> None:
    record = run_stages(tmp_path / "root", "corpus.max_documents=150", last="corpus")["corpus"]
    assert record.metrics["documents"] + record.metrics["left_out_for_test"] == 150
    with pytest.raises(SourceError, match=r"2 docstrings give no \w+ example; raise corpus\.max_documents"):
        run_stages(tmp_path / "root", "corpus.max_documents=2", last="corpus")


def reference(samples: Path) -> list[str]:
    return [
        "corpus.name=reference",
        f"corpus.source={samples}/fineweb/*_rows.parquet",
        f"corpus.summaries={samples}/xsum",
        "corpus.validation_fraction=0.1",
    ]


def test_outside_files_are_referred_to_not_copied(samples: Path, tmp_path: Path) -> None:
    record = run_stages(tmp_path, *reference(samples), last="corpus")["corpus"]
    assert sorted(digests(record)) == ["excluded.parquet", "source.json"]
    source = json.loads((tmp_path / record.id / "source.json").read_text())
    assert source["kind"] == "reference"
    assert [(file["path"], file["rows"]) for file in source["files"]] == [
        ("complete_rows.parquet", 20),
        ("first_rows.parquet", 300),
    ]
    assert source["files"][0]["columns"]["language_score"] == "double"
    assert source["id_column"] == "id"
    assert record.metrics["documents"] == 320
    counts = {split: len(list(read_examples(Store(str(tmp_path)), record, split))) for split in SUMMARY_SPLITS}
    assert counts == {"train": 1000, "validation": 210, "test": 906}
    assert len(list(read_examples(Store(str(tmp_path)), record, "test", 7))) == 7
    assert run_stages(tmp_path, *reference(samples), last="corpus")["corpus"] == record


def test_fine_tuning_reads_no_test_document(samples: Path, tmp_path: Path) -> None:
    document = "The first of the guests came at nine, and the others an hour later; nobody expected so many of them."
    twin = document.upper().replace(" ", "\n")
    held = [document, f"News: {twin} More.", twin]
    rows = {"train": [*held, "Another one."], "dev": [held[1], "A third."], "test": [document]}
    for name, documents in rows.items():
        lines = [json.dumps({"document": text, "summary": "It is so."}) for text in documents]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    settings = [f"corpus.source={samples}/fineweb/first_rows.parquet", f"corpus.summaries={tmp_path}/*.jsonl"]
    record = run_stages(tmp_path / "root", *settings, last="corpus")["corpus"]
    store = Store(str(tmp_path / "root"))
    read = {split: [e.document for e in read_trainable(store, record, split)] for split in ("train", "validation")}
    assert read == {"train": ["Another one."], "validation": ["A third."]}
    batches = open_finetune(store, record, None, 0)
    assert (len(batches._train), len(batches._validation)) == (1, 1)
    assert record.metrics["examples_left_out_for_test"] == 4
    assert (record.metrics["summaries_train"], record.metrics["summaries_validation"]) == (1, 1)
    with pytest.raises(ConfigError, match=r"1 train summaries \(4 of train and validation hold a test document\)"):
        _check_enough(store, record, FinetuneConfig(batch_size=2))


def test_a_copy_at_another_place_makes_only_the_reference_anew(samples: Path, tmp_path: Path, capsys) -> None:
    def made(place: str) -> dict[str, Record]:
        settings = [f"corpus.source={tmp_path / place}", f"corpus.summaries={samples}/xsum", "corpus.name=moved"]
        return run_stages(tmp_path / "root", *settings, "tokenizer.vocab_size=300")

    shutil.copytree(samples / "fineweb", tmp_path / "here", copy_function=shutil.copyfile)
    (tmp_path / "here" / "notes.csv").write_text("")
    first = made("here")
    assert first["corpus"].metrics["files_left_out"]["corpus.source"][".csv"] == 1
    assert "corpus.source: read" in capsys.readouterr().err
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "here")
    second = made("there")
    assert second["corpus"].id == "corpus/moved@v2"
    assert second["corpus"].fingerprint == first["corpus"].fingerprint
    files = load_corpus(Store(str(tmp_path / "root")), second["corpus"]).files
    assert {Path(file.url).parent for file in files} == {tmp_path / "there"}
    assert (second["tokenizer"], second["tokens"]) == (first["tokenizer"], first["tokens"])
    assert made("there") == second


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"body": ["a"]}, r"has text in column 'text' \(1 no_text\); the nearest column is 'body'"),
        ({"text": pa.array([None, ""], pa.string())}, r"none of the 2 rows of its 1 file has text"),
    ],
)
def test_an_unusable_source_is_an_error_that_says_so(table: dict, told: str, samples: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=told):
        run_stages(
            tmp_path / "root", f"corpus.source={tmp_path}/t.parquet", f"corpus.summaries={samples}/xsum", last="corpus"
        )


def test_a_missing_summary_column_names_split_and_column(samples: Path, tmp_path: Path) -> None:
    def run(*names: str) -> None:
        for path in tmp_path.glob("*.parquet"):
            path.unlink()
        for name in names:
            column = "highlights" if name in ("all", "dev") else "summary"
            pq.write_table(pa.table({"document": ["a"], column: ["b"]}), tmp_path / f"{name}.parquet")
        source = f"corpus.source={samples}/fineweb/first_rows.parquet"
        run_stages(tmp_path / "root", source, f"corpus.summaries={tmp_path}/*.parquet", last="corpus")

    told = r"has text in column 'summary' \(1 no_text\); the nearest column is 'highlights'"
    with pytest.raises(SourceError, match=rf"parquet: none of the 1 rows of its 1 file {told}"):
        run("all")
    with pytest.raises(SourceError, match=rf"parquet, split validation: none of the 1 rows of its 1 file {told}"):
        run("train", "dev", "test")


def test_lines_of_summaries_are_judged_one_by_one(samples: Path, tmp_path: Path) -> None:
    good = [f'{{"document": "Number {i} of them.", "summary": "The {i}.", "id": {i}}}' for i in range(9)]
    bad = ["", "{}", '{"document": " ", "summary": "a"}', '{"document": "a", "summary": 7}', "no json"]
    for place, name in enumerate(("train.jsonl", "dev.jsonl.gz", "test.jsonl")):
        data = "\n".join([*bad, *good[3 * place : 3 * place + 3 - place]]).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    source = f"corpus.source={samples}/fineweb/first_rows.parquet"
    record = run_stages(tmp_path / "root", source, f"corpus.summaries={tmp_path}/*.jsonl*", last="corpus")["corpus"]
    metrics = {key: value for key, value in record.metrics.items() if key.startswith("summaries")}
    assert metrics == {
        "summaries_train": 3,
        "summaries_validation": 2,
        "summaries_test": 1,
        "summaries_rejected": 12,
        "summaries_rejected_by_reason": {
            "document empty_text": 3,
            "document invalid_json": 3,
            "document no_text": 3,
            "summary not_text": 3,
        },
    }
    store = Store(str(tmp_path / "root"))
    ids = {split: [example.id for example in read_examples(store, record, split)] for split in SUMMARY_SPLITS}
    assert ids == {"train": ["0", "1", "2"], "validation": ["3", "4"], "test": ["6"]}
