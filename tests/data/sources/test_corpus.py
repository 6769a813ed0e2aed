import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.data.sources import corpus
from bitlm.data.sources.corpus import TEXT_SCHEMA, check_usable, describe_file, write_excluded, write_text
from bitlm.data.sources.docstrings import Docstring
from bitlm.data.sources.files import SourceFile, format_of
from bitlm.data.sources.splits import digest
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


def test_missing_columns_and_wrong_types_name_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"txet": ["a"], "number": [1]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet has no column 'text'; the nearest is 'txet'"):
        describe_file(listed(tmp_path / "t.parquet"), ("text",))
    with pytest.raises(SourceError, match=r"t\.parquet: column 'number' holds int64, not text"):
        describe_file(listed(tmp_path / "t.parquet"), ("number",))
    (tmp_path / "t.jsonl").write_text('not json\n{"body": "a"}\n')
    with pytest.raises(SourceError, match=r"t\.jsonl has no key 'text'; the nearest is 'body'"):
        describe_file(listed(tmp_path / "t.jsonl"), ("text",))
    (tmp_path / "u.jsonl").write_text("[]\n")
    with pytest.raises(SourceError, match=r"u\.jsonl: no line of it is a JSON object"):
        describe_file(listed(tmp_path / "u.jsonl"), ("text",))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(SourceError, match=r"broken\.parquet is damaged"):
        describe_file(listed(tmp_path / "broken.parquet"), ("text",))


def test_a_source_without_usable_row_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([None, ""], pa.string())}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": None}).encode()))
    files = [describe_file(listed(tmp_path / name), ("text",)) for name in ("a.parquet", "b.jsonl.gz")]
    with pytest.raises(SourceError, match=r"somewhere: no row of its 2 files has text in column 'text'"):
        check_usable(files, "text", "somewhere")
    (tmp_path / "c.jsonl").write_text('{"text": "there"}')
    check_usable([*files, describe_file(listed(tmp_path / "c.jsonl"), ("text",))], "text", "somewhere")


def test_excluded_texts_are_kept_as_digests(tmp_path: Path) -> None:
    write_excluded(["b", "a", "b"], str(tmp_path))
    assert pq.read_table(tmp_path / "excluded.parquet")["text_sha256"].to_pylist() == sorted(
        digest(text).hex() for text in "ab"
    )
