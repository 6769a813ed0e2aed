import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import draft, make

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.data import as_dataset
from bitlm.data.shards.format import ShardWriter
from bitlm.errors import ArtifactError, ConfigError

END, BITS = 0, 9
LENGTHS = {"train": [[3, 0, 20], [1], [7, 8]], "validation": [[5]]}  # of the documents of each shard


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


@pytest.fixture
def tokens(store: Store) -> tuple[Record, dict[str, list[dict]]]:
    """A tokens artifact, and the documents that were put into it."""
    random = np.random.default_rng(0)
    files, splits, documents = {}, {}, {}
    for split, shards in LENGTHS.items():
        documents[split], entries = [], []
        for number, lengths in enumerate(shards):
            path = f"shards/{split}/00000-{number:03d}.arrow"
            writer, shard, docs = ShardWriter(BITS, END), io.BytesIO(), io.BytesIO()
            ids = [random.integers(1, 2**BITS, length, dtype=np.uint32) for length in lengths]
            names = [f"{split}-{number}-{i}" for i in range(len(lengths))]
            rows = np.arange(len(lengths)) * 2
            writer.add(np.concatenate(ids), np.array(lengths), pa.array(names), rows, f"file{number}.parquet")
            writer.write(shard, docs)
            side = path.replace(".arrow", ".docs.parquet")
            files |= {path: shard.getvalue(), side: docs.getvalue()}
            entries.append({"path": path, "docs": side})
            documents[split] += [
                {"id": name, "ids": list(one), "file": f"file{number}.parquet", "row": row, "length": len(one)}
                for name, one, row in zip(names, ids, rows.tolist(), strict=True)
            ]
        splits[split] = {"shards": entries}
    files["tokens.json"] = json.dumps({"splits": splits}).encode()
    return make(store, draft("tokens"), files), documents


def test_a_row_for_each_document_of_a_split(store: Store, tokens: tuple[Record, dict[str, list[dict]]]) -> None:
    record, documents = tokens
    for split, expected in documents.items():
        dataset = as_dataset(record.id, store.root, split)
        found = [{**{key: row[key] for key in expected[0]}, "ids": list(row["ids"])} for row in dataset]
        assert found == expected
    train = as_dataset(record.id, store.root)
    assert len(train) == 6
    assert train[2]["ids"].dtype == np.uint32
    assert [list(ids) for ids in train[3:5]["ids"]] == [doc["ids"] for doc in documents["train"][3:5]]
    assert list(train["id"]) == [doc["id"] for doc in documents["train"]]
    assert [len(row["ids"]) for row in train.filter(lambda row: len(row["ids"]) > 5)] == [20, 7, 8]
    assert train.remove_columns("shard")[0].keys() == {"id", "first_token", "length", "row", "file"}


def test_rows_are_read_by_other_processes(
    store: Store, tokens: tuple[Record, dict[str, list[dict]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ)  # map puts a copy in its place
    record, documents = tokens
    sums = as_dataset(record.id, store.root).map(lambda row: {"sum": int(row["ids"].sum())}, num_proc=2)
    assert list(sums["sum"]) == [sum(map(int, doc["ids"])) for doc in documents["train"]]


def test_predictions(store: Store) -> None:
    table = pa.table({"id": ["a", "b"], "text": ["x", "y"], "row": [0, 1]})
    record = make(store, draft("evaluate"), {"predictions.parquet": parquet(table)})
    dataset = as_dataset(record.id, store.root)
    assert list(dataset) == table.to_pylist()
    with pytest.raises(ConfigError, match=r"split = 'test': .* one split only; leave it out"):
        as_dataset(record.id, store.root, "test")


def test_what_cannot_be_a_dataset_is_named(store: Store, tokens: tuple[Record, dict[str, list[dict]]]) -> None:
    corpus = make(store, draft("corpus"), {"source.json": b"{}"})
    with pytest.raises(
        ArtifactError, match=rf"{corpus.id} cannot be read as a dataset: expected .* tokens or evaluate"
    ):
        as_dataset(corpus.id, store.root)
    with pytest.raises(ConfigError, match=r"split = 'test': .* has the splits train, validation"):
        as_dataset(tokens[0].id, store.root, "test")
    with pytest.raises(ArtifactError, match="there is no artifact tokens/absent"):
        as_dataset("tokens/absent", store.root)


@pytest.mark.parametrize("name", ["tokens.json", "shards/train/00000-001.docs.parquet"])
def test_a_damaged_file_is_named_at_once(name: str, store: Store, tokens: tuple[Record, dict[str, list[dict]]]) -> None:
    _flip(Path(store.url(tokens[0].id, name)))
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        as_dataset(tokens[0].id, store.root)


def test_a_damaged_shard_is_named_when_it_is_read(store: Store, tokens: tuple[Record, dict[str, list[dict]]]) -> None:
    name = "shards/train/00000-002.arrow"
    _flip(Path(store.url(tokens[0].id, name)))
    dataset = as_dataset(tokens[0].id, store.root)
    assert len(dataset[3]["ids"]) == 1
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        dataset[4]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
