"""One unit of the tokens stage, without Ray."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import draft, make

from bitlm.artifacts.store import Store
from bitlm.config import TokenizerConfig
from bitlm.data.shards import encode, output
from bitlm.data.shards import format as shards
from bitlm.data.shards import units as tokens
from bitlm.data.shards.encode import encode_unit
from bitlm.data.shards.engine import Encoded, TextEncoder
from bitlm.data.shards.format import Shard
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, TextTokenizer, TokenizerInfo, describe, train
from bitlm.data.shards.units import Job, Unit
from bitlm.data.sources import parquet, textbatch
from bitlm.data.sources.corpus import EXCLUDED_FILE, describe_file, parquet_bytes
from bitlm.data.sources.files import find_files
from bitlm.data.sources.held_out import held_out_table
from bitlm.data.sources.splits import digest, fractions, text_split
from bitlm.errors import ArtifactError, SourceError

TEST_TEXT = "A text that must not be trained on, \u201cwhatever\u201d its line breaks, and wherever it is."
TEXTS = [f"The value of item {i} is {'much ' * (i % 7)}more — naïve <|endoftext|>" for i in range(400)]

Make = Callable[..., tuple[list[Unit], Job]]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Units and job over the files in tmp_path/source."""

    def make_job(unit_bytes: int = 10**9, **given: Any) -> tuple[list[Unit], Job]:
        store, config = Store(str(tmp_path / "root")), TokenizerConfig(vocab_size=300)
        data = train(TEXTS, config)
        files = {TOKENIZER_FILE: data, INFO_FILE: describe(data, config).model_dump_json().encode()}
        tokenizer = make(store, draft("tokenizer"), files)
        corpus = make(store, draft("corpus"), {EXCLUDED_FILE: parquet_bytes(held_out_table([TEST_TEXT]))})
        source = tmp_path / "source"
        listed = find_files(str(source)).files
        columns = {"text_column": "text", "id_column": "id", "validation_fraction": 0.2, **given}
        job = Job(store.root, str(tmp_path / "out"), 2, corpus, tokenizer, **columns)
        return tokens.plan([describe_file(file, ("text",)) for file in listed], unit_bytes), job

    (tmp_path / "source").mkdir()
    return make_job


def write(path: Path, texts: list, ids: list | None = None, **options: Any) -> None:
    pq.write_table(pa.table({"text": texts, "id": pa.array(ids or [None] * len(texts), pa.string())}), path, **options)


def documents(job: Job, results: list[encode.UnitResult]) -> list[tuple[str, str, str, int]]:
    """(text, id, file, row) of every document in the shards, decoded."""
    tokenizer = TextTokenizer.load(Store(job.root).url(job.tokenizer.id))
    found = []
    for result in results:
        for entry in (entry for entries in result.record.shards.values() for entry in entries):
            shard = Shard(f"{job.out}/{entry.path}")
            for doc in pq.read_table(f"{job.out}/{entry.docs}").to_pylist():
                ids = shard.ids(doc["first_token"], doc["length"])
                found.append((tokenizer.decode(ids), doc["id"], doc["file"], doc["row"]))
    return found


def digests_of(out: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}


def test_every_document_is_found_again_with_its_id_file_and_row(made: Make, tmp_path: Path) -> None:
    write(tmp_path / "source" / "a.parquet", TEXTS[:300], [f"a{i}" for i in range(300)], row_group_size=40)
    write(tmp_path / "source" / "b.parquet", TEXTS[300:390])
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(TEXTS[390:])]
    (tmp_path / "source" / "c.jsonl").write_text("\n".join(["no json", *lines, json.dumps({"text": TEST_TEXT})]))
    units, job = made(unit_bytes=5000)
    assert len(units) > 3
    assert any(len({part.path for part in unit.parts}) > 1 for unit in units)
    results = [encode_unit(unit, job) for unit in units]
    want = [(text, f"a{i}", "a.parquet", i) for i, text in enumerate(TEXTS[:300])]
    want += [(text, f"sha256:{digest(text).hex()[:32]}", "b.parquet", i) for i, text in enumerate(TEXTS[300:390])]
    want += [(text, str(i), "c.jsonl", i + 1) for i, text in enumerate(TEXTS[390:])]
    assert sorted(documents(job, results)) == sorted(want)
    for result in results:
        record = result.record
        for split, entries in record.shards.items():
            texts = {doc[0] for doc in documents(job, [result])}
            assert sum(entry.documents for entry in entries) == sum(text_split(digest(t), 0.2) == split for t in texts)
    rejected = [row for path in Path(job.out).glob("rejected/*") for row in pq.read_table(path).to_pylist()]
    assert [(row["reason"], row["row"], row["text"]) for row in rejected] == [
        ("invalid_json", 0, None),
        ("test_document", 11, TEST_TEXT),
    ]


def test_texts_that_hold_a_test_document_are_rejected(made: Make, tmp_path: Path) -> None:
    twin = TEST_TEXT.upper().replace(" ", "\n ").replace("\u201c", "'")
    texts = [f"{TEXTS[0]} {TEST_TEXT}", TEXTS[1], f"{twin}{TEXTS[2]}", twin, TEST_TEXT[:-20], TEST_TEXT[20:]]
    write(tmp_path / "source" / "a.parquet", [*texts[:3], None, *texts[3:]])
    (unit,), job = made()
    result = encode_unit(unit, job)
    assert [text for text, *_ in documents(job, [result])] == [texts[1], *texts[4:]]
    assert result.record.rejected == {"no_text": 1, "test_document": 3}


def test_a_finished_unit_is_not_done_again_unless_its_files_or_its_job_differ(made: Make, tmp_path: Path) -> None:
    write(tmp_path / "source" / "a.parquet", TEXTS)
    (unit,), job = made()
    first = encode_unit(unit, job)
    files = digests_of(job.out)
    assert first.seconds is not None
    assert encode_unit(unit, job).seconds is None
    shard = Path(job.out) / first.record.shards["train"][0].path
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert encode_unit(unit, job).seconds is not None
    shard.unlink()
    assert encode_unit(unit, job).record == first.record
    assert digests_of(job.out) == files
    assert encode_unit(unit, Job(**{**vars(job), "format": 3})).seconds is not None


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_DOCUMENTS"])
def test_a_unit_of_any_size_is_cut_into_shards(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(shards, limit, 50)
    for module in (parquet, textbatch):
        monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    write(tmp_path / "source" / "a.parquet", TEXTS, list(map(str, range(400))), use_dictionary=False)
    (unit,), job = made()
    result = encode_unit(unit, job)
    paths = [entry.path for entry in result.record.shards["train"]]
    assert paths == [f"shards/train/00000-{number:03d}.arrow" for number in range(len(paths))]
    assert len(paths) > 3
    assert sorted(documents(job, [result])) == sorted((text, str(i), "a.parquet", i) for i, text in enumerate(TEXTS))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_difference_between_the_engines_stops_the_unit_and_names_the_document(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    wrong = next(text for text in TEXTS if text_split(digest(text), 0.2) == split)
    write(tmp_path / "source" / "a.parquet", [wrong] * 3, ["one", "two", "three"])
    right = TextEncoder.encode

    def broken(encoder: TextEncoder, texts: list[str]) -> Encoded:
        found = right(encoder, texts)
        return Encoded(found.ids ^ 1, found.lengths)

    monkeypatch.setattr(TextEncoder, "encode", broken)
    (unit,), job = made()
    with pytest.raises(ArtifactError, match=r"a\.parquet: fastokens and tokenizers encode document (one|two|three) "):
        encode_unit(unit, job)
    assert not Path(job.out).exists()
    (unit,), job = made(engine="reference")
    monkeypatch.undo()
    assert encode_unit(unit, job).record.documents_in == 3


def test_the_sample_is_a_share_of_the_text_and_at_least_one_document_of_a_shard() -> None:
    info = TokenizerInfo(sha256="", vocab_size=300, num_bits=9, end_id=0, pad_id=1, end_token="")
    made = output.Output(0, info, output.Clock(), lambda *_: None)
    assert made.due("validation", 10) > 1
    made.sampled("train", made.due("train", 0) + 4096)
    assert made.due("train", 2**23) == pytest.approx(2**23 / 4096 - 4096)


@pytest.mark.parametrize("changes", [False, True])
def test_a_source_that_changes_while_it_is_read_is_named(
    changes: bool, made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "source" / "a.parquet"
    write(path, TEXTS)
    (unit,), job = made()
    real = encode.encode_batch

    def meanwhile(*given: Any) -> None:
        real(*given)
        os.utime(path)  # no change of the content
        if changes:
            write(tmp_path / "other", [*TEXTS[1:], TEXTS[0]])
            os.replace(tmp_path / "other", path)

    monkeypatch.setattr(encode, "encode_batch", meanwhile)
    if not changes:
        assert encode_unit(unit, job).record.documents_in == len(TEXTS)
        return
    with pytest.raises(SourceError, match=r"a\.parquet changed since the corpus was made"):
        encode_unit(unit, job)
    assert not list(Path(job.out).glob("units/*"))


def test_rows_without_any_text(made: Make, tmp_path: Path) -> None:
    write(tmp_path / "source" / "a.parquet", [None, "", None], row_group_size=2)
    (tmp_path / "source" / "b.jsonl").write_text('{"text": ""}\n{"text": null}\n' * 3)
    units, job = made(id_column=None)
    (result,) = [encode_unit(unit, job) for unit in units]
    assert result.record.shards == {}
    assert result.record.rejected == {"empty_text": 4, "no_text": 5}
    assert result.record.documents_in == 9


def test_a_file_with_good_neighbours_may_hold_no_text(made: Make, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write(folder / "a.parquet", TEXTS[:3], ["x", None, ""])
    pq.write_table(pa.table({"text": pa.nulls(5)}), folder / "b.parquet", row_group_size=2)
    pq.write_table(pa.table({"text": [1, None]}), folder / "c.parquet")
    pq.write_table(pa.table({"body": TEXTS[:4]}), folder / "d.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "e.parquet")
    (folder / "f.jsonl").write_text(
        f'{{"id": 1}}\n\n{json.dumps({"text": TEXTS[3], "id": 0})}\n[]\n{{"text": "\u200b"}}'
    )
    (folder / "g.jsonl").write_bytes(b"")
    units, job = made(unit_bytes=1)
    records = [encode_unit(unit, job).record for unit in units]
    rejected = Counter()
    for record in records:
        rejected.update(record.rejected)
    assert rejected == {"no_text": 5 + 1 + 4 + 1, "not_text": 1, "invalid_json": 1, "empty_text": 1}
    assert sum(record.documents_in for record in records) == 4 + rejected.total()
    docs = [pq.read_table(path).to_pylist() for path in sorted(Path(job.out).glob("shards/*/*.docs.parquet"))]
    derived = [f"sha256:{digest(text).hex()[:32]}" for text in TEXTS[1:3]]
    assert {row["id"] for rows in docs for row in rows} == {"x", *derived, "0"}


def test_fractions_are_those_of_one_digest_each() -> None:
    found = [digest(text) for text in TEXTS]
    heads = np.frombuffer(b"".join(found), ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
    splits = np.where(fractions(heads) < 0.2, "validation", "train").tolist()
    assert splits == [text_split(one, 0.2) for one in found]
