import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlm.data.sources.corpus import Summaries, describe_file
from bitlm.data.sources.files import SourceFile, format_of
from bitlm.data.sources.held_out import HeldOut, held_out_table
from bitlm.data.summaries.examples import (
    SUMMARY_COLUMNS,
    SUMMARY_SPLITS,
    Example,
    document_split,
    from_docstrings,
    split_examples,
    split_rows,
    summarize,
    trainable,
)
from bitlm.data.summaries.named_splits import refer

BODY = (
    "The value is taken from the first of the sources that has one, in the order in which they were given to the\n"
    "constructor; it is an error if none of them does."
)


def test_body_and_summary_line() -> None:
    assert summarize(f"Return the value of a key.\n\n{BODY}") == (BODY, "Return the value of a key.")
    more = "A second paragraph of the body, which is prose as well and so belongs to it."
    sections = "Parameters\n----------\nkey : str\n    The name of the key."
    assert summarize(f"Return the value of a key.\n\n{BODY}\n\n{more}\n\n{sections}") == (
        f"{BODY}\n\n{more}",
        "Return the value of a key.",
    )


@pytest.mark.parametrize(
    "docstring",
    [
        "Return the value of a key.",
        f"Return the value of a key\n\n{BODY}",
        f"Return the value of a key.\n{BODY}",
        f"Value.\n\n{BODY}",
        "Return the value of a key.\n\nOnly a few words of body.",
        f"Return the value of a key.\n\nArgs:\n    {BODY}",
        f"Return the value of a key.\n\n>>> get('x')\n{BODY}",
        "Return the value of a key.\n\n" + "word " * 30,
    ],
)
def test_what_is_no_example(docstring: str) -> None:
    assert summarize(docstring) is None


GAPS = st.lists(st.sampled_from([" ", "\n", " \n  "]))


@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=8), GAPS)
def test_spacing_does_not_move_a_document(words: list[str], gaps: list[str]) -> None:
    spaced = "".join(word + (gaps[i] if i < len(gaps) else "\t") for i, word in enumerate(words))
    assert document_split(spaced) == document_split(" ".join(words))


def test_equal_bodies_count_once_and_every_split_gets_its_share() -> None:
    texts = [f"Return the value of a key.\n\nThing {i} of them. {BODY}" for i in range(2000)]
    found = from_docstrings([*texts, *(text.replace("Return", "Give") for text in texts)])
    assert sum(map(len, found.values())) == 2000
    assert 60 < len(found["test"]) < 140
    assert 30 < len(found["validation"]) < 95
    assert all(document_split(example.document) == split for split in SUMMARY_SPLITS for example in found[split])
    ids = [example.id for split in SUMMARY_SPLITS for example in found[split]]
    assert len(set(ids)) == 2000


def test_what_holds_a_test_document_is_not_trained_on() -> None:
    held_out = HeldOut(held_out_table([BODY, "Short."]))
    twin = BODY.upper().replace(" ", "\n")
    rows = [
        ("Other.", "It is."),
        (twin, "It is."),
        (f"See: {twin} So.", "It is."),
        ("Other.", BODY),
        ("short", "It is."),
    ]
    examples = [
        Example(document, summary, str(n)) for n, (document, summary) in enumerate([*rows, (BODY[5:], "It is.")])
    ]
    assert [example.id for example in trainable(examples * 700, held_out)] == ["0", "5"] * 700


def test_real_xsum_rows(samples: Path) -> None:
    files = []
    for name in ("train", "test", "validation_like"):
        path = samples / "xsum" / f"{name}.parquet"
        listed = SourceFile(url=str(path), path=path.name, format="parquet", bytes=path.stat().st_size, etag="x")
        files.append(describe_file(listed, ("document", "summary")))
    described = refer(files, "xsum")
    counts = {split: len(list(split_examples(described, split))) for split in SUMMARY_SPLITS}
    assert counts == {"train": 1000, "validation": 210, "test": 906}
    assert all(example.id for split in SUMMARY_SPLITS for example in split_examples(described, split))
    hashed = Summaries(train=described.train, validation=described.train, test=described.train, hash_split=True)
    parts = {split: {e.document for e in split_examples(hashed, split)} for split in SUMMARY_SPLITS}
    assert set.union(*parts.values()) == {e.document for e in split_examples(described, "train")}
    assert not parts["test"] & (parts["train"] | parts["validation"])


ROWS = [
    {"document": "one", "summary": "a", "id": 0},
    {"document": " \n", "summary": "a", "id": 1},
    {"document": "two", "summary": "\u200b", "id": 2},
    {"document": None, "summary": None, "id": 3},
    {"document": "three", "summary": "c", "id": ""},
    {"document": "", "summary": "d", "id": "x"},
    {"document": "four", "summary": None, "id": "x"},
    {"document": "five", "summary": "e", "id": None},
]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_rows_are_judged_as_text_to_pretrain_on_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        rows = [row | {"id": None if row["id"] is None else str(row["id"])} for row in ROWS]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    listed = SourceFile(url=str(path), path=name, format=format_of(name), bytes=path.stat().st_size, etag="x")
    file = describe_file(listed, SUMMARY_COLUMNS)
    described = Summaries(train=(file,), validation=(file,), test=(file,), hash_split=False)
    rows = list(split_rows(described, "train"))
    assert [row if isinstance(row, str) else (row.document, row.summary) for row in rows] == [
        ("one", "a"),
        "document empty_text",
        "summary empty_text",
        "document no_text",
        ("three", "c"),
        "document empty_text",
        "summary no_text",
        ("five", "e"),
    ]
    examples = list(split_examples(described, "test"))
    assert examples == [row for row in rows if not isinstance(row, str)]
    derived = [hashlib.sha256(document.encode()).hexdigest()[:16] for document in ("three", "five")]
    assert [example.id for example in examples] == ["0", *derived]
    hashed = described.model_copy(update={"hash_split": True})
    found = [row for split in SUMMARY_SPLITS for row in split_rows(hashed, split)]
    assert sorted(map(str, found)) == sorted(map(str, rows))


def test_columns_of_batches_of_different_sizes_are_read_side_by_side(tmp_path: Path) -> None:
    rows = [{"document": f"{i} " * 3000, "summary": f"s{i}", "id": f"{i}"} for i in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    path = str(tmp_path / "a.parquet")
    listed = SourceFile(url=path, path="a.parquet", format="parquet", bytes=1, etag="x")
    file = describe_file(listed, SUMMARY_COLUMNS)
    described = Summaries(train=(file,), validation=(), test=(), hash_split=False)
    assert [example._asdict() for example in split_examples(described, "train")] == rows
