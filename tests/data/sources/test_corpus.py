import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.data.sources import corpus
from bitlm.data.sources.corpus import TEXT_SCHEMA, check_usable, describe_file, write_text
from bitlm.data.sources.docstrings import Docstring
from bitlm.data.sources.files import SourceFile, format_of
from bitlm.errors import SourceError


def listed(path: Path) -> SourceFile:
    return SourceFile(url=str(path), path=path.name, format=format_of(path.name), bytes=path.stat().st_size, etag="x")


def test_written_text_has_fineweb_columns_several_files_and_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: Path
) -> None:
    monkeypatch.setattr(corpus, "PART_BYTES", 5000)
    monkeypatch.setattr(corpus, "GROUP_BYTES", 1000)
    texts = [f"Text number {i} " + "of the things " * 5 for i in range(200)]
    docstrings = [Docstring("thing==1.0", "thing/a.py", i, text, 0.5) for i, text in enumerate(texts)]
    files = write_text(docstrings, str(tmp_path))
    assert [file.url for file in files] == [f"text/part-{i:05d}.parquet" for i in range(len(files))]
    assert len(files) > 2
    assert all(len(file.row_groups) > 1 and sum(group.rows for group in file.row_groups) == file.rows for file in files)
    tables = [pq.read_table(tmp_path / file.url) for file in files]
    assert all(table.schema == TEXT_SCHEMA for table in tables)
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["text"] for row in rows] == texts
    assert rows[3]["url"] == "pkg:pypi/thing@1.0#thing/a.py:3"
    assert len({row["id"] for row in rows}) == 200
    published = pq.read_schema(samples / "fineweb" / "complete_rows.parquet")
    assert {field.name: field.type for field in published} == {field.name: field.type for field in TEXT_SCHEMA}


def test_inspection_counts_rows_and_text_bytes(samples: Path) -> None:
    path = samples / "fineweb" / "sample_10bt.parquet"
    found = describe_file(listed(path), ("text",))
    assert found.rows == 2000 == sum(group.rows for group in found.row_groups)
    text = sum(len(text.encode()) for text in pq.read_table(path)["text"].to_pylist())
    assert text <= sum(group.bytes for group in found.row_groups) < 1.1 * text


def test_only_what_cannot_be_read_is_refused_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('[]\n{"body": "a"}\n{"text": 1, "\\ud800": 2}\n')
    assert describe_file(listed(tmp_path / "t.jsonl"), ("text",)).columns == {
        "body": "str",
        "text": "int",
        "\\ud800": "int",
    }
    pq.write_table(
        pa.table({"text": pa.nulls(3), "other": [{"text": 1}] * 3}), tmp_path / "t.parquet", row_group_size=2
    )
    described = describe_file(listed(tmp_path / "t.parquet"), ("absent",))
    assert described.columns == {"text": "null", "other": "struct<text: int64>"}
    assert [(group.rows, group.bytes) for group in described.row_groups] == [(2, 0), (1, 0)]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(SourceError, match=r"broken\.parquet is damaged"):
        describe_file(listed(tmp_path / "broken.parquet"), ("text",))
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(SourceError, match=r"twice\.parquet has several columns 'text'"):
        describe_file(listed(tmp_path / "twice.parquet"), ("text",))


GOOD = '{"text": "there"}'


@pytest.mark.parametrize(
    "lines",
    [
        f'{{"id": 1}}\n{GOOD}',
        f"\n\n{GOOD}",
        f"not json\n[1]\n7\n{GOOD}",
        f'{{"text": null}}\n{{"text": 3}}\n{GOOD}',
        "{}\n" * 5000 + GOOD,
    ],
)
def test_a_file_is_not_judged_by_its_first_rows(tmp_path: Path, lines: str) -> None:
    (tmp_path / "t.jsonl").write_text(lines)
    check_usable([describe_file(listed(tmp_path / "t.jsonl"), ("text",))], "text", "somewhere")


def test_one_good_file_is_enough(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text("")
    (tmp_path / "d.jsonl").write_text(GOOD)
    files = [describe_file(listed(path), ("text",)) for path in sorted(tmp_path.iterdir())]
    check_usable(files, "text", "somewhere")
    with pytest.raises(SourceError, match=r"^somewhere: none of the 3 rows of its 3 files has text in column 'text'"):
        check_usable(files[:3], "text", "somewhere")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.parquet", {"txet": ["a"]}, r"\(1 no_text\); the nearest column is 'txet' \(there are: txet\)"),
        (
            "a.parquet",
            {"context": ["a"], "TEXT ": ["a"]},
            r"; the nearest column is 'TEXT ' \(there are: context, TEXT \)",
        ),
        ("a.parquet", {"text": [1, None]}, r"\(1 not_text, 1 no_text\); the column holds int64"),
        ("a.parquet", {"text": [None, "", " "]}, r"\(1 no_text, 2 empty_text\)$"),
        (
            "a.parquet",
            {"text": pa.array([], pa.string())},
            "none of the 0 rows of its 1 file has text in column 'text'$",
        ),
        ("a.parquet", {"meta": [{"text": "a"}]}, r"the nearest column is 'meta'"),
        ("a.jsonl", b'not json\n{"body": "a"}\n', r"\(1 invalid_json, 1 no_text\); the nearest column is 'body'"),
        ("a.jsonl", b"[]\n", r"\(1 invalid_json\)$"),
        ("a.jsonl", b"", r"none of the 0 rows of its 1 file has text in column 'text'$"),
        ("a.jsonl.gz", gzip.compress(b'{"text": ["a"]}', mtime=0), r"\(1 not_text\); the column holds list"),
    ],
)
def test_a_source_without_usable_row_is_an_error(tmp_path: Path, name: str, content: dict | bytes, told: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(pa.table(content), tmp_path / name)
    with pytest.raises(SourceError, match=told):
        check_usable([describe_file(listed(tmp_path / name), ("text",))], "text", "somewhere")
