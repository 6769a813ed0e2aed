import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.data.sources import jsonl, parquet
from bitlm.data.sources.rows import Row, read_batches, read_rows
from bitlm.errors import SourceError


def rows(path: Path, id_column: str | None = None, groups: range | None = None) -> list[Row]:
    kind = "parquet" if path.suffix == ".parquet" else "jsonl"
    return [row for batch in read_rows(str(path), kind, "text", id_column, groups) for row in batch]


def invalid_utf8() -> pa.Array:
    """A string column whose second value is not UTF-8, as careless writers make them."""
    values = [b"fine", b"bad \xff\xfe", None, b"", "naïve 𝕏".encode()]
    return pa.Array.from_buffers(pa.string(), 5, pa.array(values, pa.binary()).buffers())


KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_text_columns_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["one", None, "", "naïve"]).cast(kind), "id": pa.array([7, None, 8, 9])})
    pq.write_table(table, tmp_path / "t.parquet", store_schema=True)
    assert rows(tmp_path / "t.parquet", "id") == [
        Row(0, "7", "one", None),
        Row(1, None, None, "no_text"),
        Row(2, "8", "", "empty_text"),
        Row(3, "9", "naïve", None),
    ]


OTHER = [
    pa.nulls(2),
    pa.array([1, None]),
    pa.array([0.5, None]),
    pa.array([True, None]),
    pa.array([["a"], None]),
    pa.array([{"text": "a", "more": 1}, None]),
    pa.array([b"aa", None], pa.binary(2)),
    pa.array([1, None], pa.timestamp("ns")),
    pa.array([1, None], pa.decimal128(30, 2)),
    pa.array([1, None]).dictionary_encode(),
]


@pytest.mark.parametrize("column", OTHER, ids=lambda column: str(column.type))
def test_a_column_that_is_not_text_costs_its_rows_alone(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"text": column, "id": ["x", "y"]}), tmp_path / "t.parquet")
    first = "no_text" if column[0].as_py() is None else "not_text"
    found = rows(tmp_path / "t.parquet", "id")
    assert [(row.row, row.id, row.reason) for row in found] == [(0, "x", first), (1, "y", "no_text")]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_bytes_are_read_as_utf8(tmp_path: Path, kind: pa.DataType) -> None:
    values = ["naïve".encode(), None, b"bad \xff", b" "]
    pq.write_table(pa.table({"text": pa.array(values, kind), "id": pa.array(values, kind)}), tmp_path / "t.parquet")
    found = [(row.text, row.id, row.reason) for row in rows(tmp_path / "t.parquet", "id")]
    assert found == [
        ("naïve", "naïve", None),
        (None, None, "no_text"),
        ("bad \\xff", "bad \\xff", "invalid_unicode"),
        (" ", None, "empty_text"),
    ]


def test_a_file_without_the_column_costs_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"Text": ["a"] * 3, "id": [1, 2, 3], "meta": [{"text": "b"}] * 3}), path, row_group_size=2)
    assert rows(path, "id") == [Row(i, str(i + 1), None, "no_text") for i in range(3)]
    assert rows(path, None, range(1, 2)) == [Row(2, None, None, "no_text")]
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert rows(path, "id") == []
    pq.write_table(pa.table({}), path)
    assert rows(path, "id") == []


def test_rows_without_text_come_in_bounded_batches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": pa.nulls(300_000, pa.int8())}), tmp_path / "t.parquet")
    sizes = [len(batch.rows) for batch in read_batches(str(tmp_path / "t.parquet"), "parquet", "text", None)]
    assert sum(sizes) == 300_000
    assert max(sizes) < 70_000


def test_a_column_of_a_dotted_name_is_no_nested_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.text": ["flat"], "a": [{"text": "nested"}]}), tmp_path / "t.parquet")
    ((found,),) = read_rows(str(tmp_path / "t.parquet"), "parquet", "a.text", None)
    assert found.text == "flat"
    pq.write_table(pa.table({"a": [{"text": "nested"}]}), tmp_path / "t.parquet")
    ((found,),) = read_rows(str(tmp_path / "t.parquet"), "parquet", "a.text", None)
    assert found.reason == "no_text"


BLANK = [
    "",
    " ",
    "\n\t\r\n",
    "\x00",
    "\x1f\x7f\x85",
    "\u00a0\u2003\u3000",
    "\u200b\u200d\ufeff",
    "\u00ad\u2060\u202e",
    " " * 5000,
]
FILLED = [" a ", "\u200bb", "0", "\u3000漢字", "…", "\u0301", "\U0001f600", "\u00a0" * 5000 + "é"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_text_of_white_space_and_zero_width_characters_is_empty(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": BLANK + FILLED, "id": BLANK + FILLED}), path)
    else:
        path.write_text("".join(json.dumps({"text": text, "id": text}) + "\n" for text in BLANK + FILLED))
    found = rows(path, "id")
    assert [row.reason for row in found] == ["empty_text"] * len(BLANK) + [None] * len(FILLED)
    assert [row.id for row in found] == [None] * len(BLANK) + FILLED
    assert [row.text for row in found] == BLANK + FILLED


def test_one_value_that_is_not_utf8_spoils_no_other(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": invalid_utf8()}), tmp_path / "t.parquet")
    found = rows(tmp_path / "t.parquet")
    assert [row.reason for row in found] == [None, "invalid_unicode", "no_text", "empty_text", None]
    assert found[1].text == "bad \\xff\\xfe"
    assert found[4].text == "naïve 𝕏"


def test_row_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [str(i) for i in range(1000)]}), tmp_path / "t.parquet", row_group_size=300)
    found = rows(tmp_path / "t.parquet", groups=range(1, 3))
    assert [row.row for row in found] == list(range(300, 900))
    assert [row.text for row in found] == [str(i) for i in range(300, 900)]


LINES = [
    b'{"text": "one", "id": "a"}',
    b"not json",
    b"",
    b'["a list"]',
    b'{"id": "c"}',
    b'{"text": 5}',
    b'{"text": ""}',
    b'{"text": "lone \\ud800"}',
    b'{"text": "bad \xff"}',
    b'{"text": "last", "id": 3}',
]
EXPECTED = [
    Row(0, "a", "one", None),
    Row(1, None, None, "invalid_json"),
    Row(3, None, None, "invalid_json"),
    Row(4, "c", None, "no_text"),
    Row(5, None, "5", "not_text"),
    Row(6, None, "", "empty_text"),
    Row(7, None, "lone \\ud800", "invalid_unicode"),
    Row(8, None, None, "invalid_json"),
    Row(9, "3", "last", None),
]


def test_jsonl_plain_and_gzipped(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(LINES))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b"\n".join(LINES)))
    assert rows(tmp_path / "t.jsonl", "id") == EXPECTED
    assert rows(tmp_path / "t.jsonl.gz", "id") == EXPECTED


ODD = [
    (b'\xef\xbb\xbf{"text": "after a mark of byte order"}\r', None),
    (b'{"text": "one", "text": "the last of equal keys counts"}', None),
    (b'{"text": "a\\u0000b", "n": NaN}', None),
    (b'{"text": "a\x00b"}', "invalid_json"),
    (bytes(20), "invalid_json"),
    (b"7", "invalid_json"),
    (b'"text"', "invalid_json"),
    (b"null", "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b'{"text": ["a"]}', "not_text"),
    (b'{"text": NaN}', "not_text"),
    (b'{"text": false}', "not_text"),
    (b'{"Text": "a", " text": "a"}', "no_text"),
    (b'{"text": "cut', "invalid_json"),
    (b'{"n": ' + b"9" * 5000 + b', "text": "a"}', "invalid_json"),
    (b'{"text": "' + b"x" * 5_000_000 + b'"}', None),
]


def test_lines_are_judged_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(line for line, _ in ODD))
    found = rows(tmp_path / "t.jsonl")
    assert [(row.row, row.reason) for row in found] == [(i, reason) for i, (_, reason) in enumerate(ODD)]
    assert [row.text for row in found[:3]] == ["after a mark of byte order", "the last of equal keys counts", "a\x00b"]
    (tmp_path / "t.jsonl").write_bytes(b"")
    assert rows(tmp_path / "t.jsonl") == []


def test_ids_in_lines(tmp_path: Path) -> None:
    ids = ["a", 0, -7, 1.5, float("nan"), True, None, "", " ", [1], {"a": 1}, "\ud800", "x" * 100_000]
    lines = [json.dumps({"id": id, "text": "t"}) for id in ids]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, '{"text": "t"}']))
    want = ["a", "0", "-7", "1.5", None, "True", None, None, None, None, None, "\\ud800", "x" * 100_000, None]
    assert [row.id for row in rows(tmp_path / "t.jsonl", "id")] == want


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_line_without_an_end_is_refused_with_its_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gzip file of a megabyte may hold a line of a gigabyte."""
    monkeypatch.setattr(jsonl, "LINE_BYTES", 1000)
    longest = json.dumps({"text": "a" * (999 - len('{"text": ""}'))}) + "\n"
    path = tmp_path / name
    pack = gzip.compress if name.endswith(".gz") else bytes
    path.write_bytes(pack(longest.encode()))
    assert len(list(read_rows(str(path), "jsonl", "text", None))) == 1
    path.write_bytes(pack(longest.encode() + b"b" * 1001))
    with pytest.raises(SourceError, match=rf"{name}: row 1 is longer than"):
        list(read_rows(str(path), "jsonl", "text", None))


def test_truncated_gzip_stops_with_file_and_row(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(json.dumps({"text": str(i) * 50}) for i in range(5000)).encode(), compresslevel=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"cut\.jsonl\.gz is damaged at row [1-9]\d+"):
        rows(tmp_path / "cut.jsonl.gz")


def test_truncated_parquet_stops_with_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x" * 100] * 100}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"t\.parquet is damaged"):
        rows(tmp_path / "t.parquet")


def test_a_column_name_that_is_not_utf8_stops_with_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "colname": [1]}), tmp_path / "t.parquet", store_schema=False)
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data.replace(b"colname", b"col\xff\xfeme"))
    with pytest.raises(SourceError, match=r"t\.parquet is damaged"):
        rows(tmp_path / "t.parquet")


def test_damaged_row_group_stops_with_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"text": [f"{i * 7919:x}" * 30 for i in range(400)]})
    pq.write_table(table, path, row_group_size=200, compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    assert len(rows(path, groups=range(1))) == 200
    with pytest.raises(SourceError, match=r"t\.parquet is damaged at row 200"):
        rows(path, groups=range(1, 2))


def test_real_rows_with_null_ids(samples: Path) -> None:
    found = rows(samples / "fineweb" / "first_rows.parquet", "id")
    assert len(found) == 300
    assert {row.id for row in found} == {None}
    assert all(row.text and row.reason is None for row in found)


@pytest.mark.parametrize("fetch", [1, 2000, 10**9])
@pytest.mark.parametrize("batch", [1, 700, 10**9])
def test_bundles_streams_and_cuts_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetch: int, batch: int
) -> None:
    texts = [None if i % 11 == 0 else "ä" * (i % 90) for i in range(300)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet", row_group_size=37, use_dictionary=False)
    want = rows(tmp_path / "t.parquet")
    monkeypatch.setattr(parquet, "FETCH_BYTES", fetch)
    monkeypatch.setattr(parquet, "BATCH_BYTES", batch)
    assert rows(tmp_path / "t.parquet") == want
    assert [row.text for row in want if row.reason is None] == [text for text in texts if text]
    batches = list(read_batches(str(tmp_path / "t.parquet"), "parquet", "text", None))
    assert all(len(found.rows) == 1 or np.ptp(found.bounds()) <= 2 * batch for found in batches)


def test_a_huge_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    """64 MB of text in one row group, in a process of its own; read at once it would take as much and more."""
    noise = np.random.default_rng(0).integers(97, 123, 64 * 2**20, dtype=np.uint8).tobytes().decode()
    texts = [noise[i : i + 8192] for i in range(0, len(noise), 8192)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    code = f"""
import resource
from bitlm.data.sources import parquet
parquet.FETCH_BYTES, parquet.BATCH_BYTES = 2**20, 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(len(batch.rows) for batch in parquet.parquet_batches({str(tmp_path / "t.parquet")!r}, "text", None, None))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 8192
    assert kilobytes < 40_000


def test_ids_that_are_numbers_or_not_utf8(tmp_path: Path) -> None:
    for ids, want in (
        ([7, None, 0], ["7", None, "0"]),
        ([1.5, 2.0, None], ["1.5", "2.0", None]),
        ([1.0, float("nan"), 0.0], ["1.0", None, "0.0"]),
        ([False, None, True], ["False", None, "True"]),
        (["", " ", "0"], [None, None, "0"]),
        ([[1], None, [2]], [None, None, None]),
    ):
        pq.write_table(pa.table({"text": ["a", "b", "c"], "id": ids}), tmp_path / "t.parquet")
        assert [row.id for row in rows(tmp_path / "t.parquet", "id")] == want
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"x", b"\xff", None], pa.binary()).buffers())
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": bad}), tmp_path / "t.parquet")
    assert [row.id for row in rows(tmp_path / "t.parquet", "id")] == ["x", "\\xff", None]
