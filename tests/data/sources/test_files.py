"""Which files of a source are text, and how they are read whatever they are called and compressed by."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.data.sources.files import describe_left_out, find_files, usable_files
from bitlm.data.sources.rows import read_rows
from bitlm.errors import SourceError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def texts_of(source: Path | str) -> list[str | None]:
    files = find_files(str(source)).files
    return [row.text for file in files for rows in read_rows(file.url, file.format, "text", None) for row in rows]


def test_a_folder_as_people_have_them(tmp_path: Path) -> None:
    folder, away = tmp_path / "folder", tmp_path / "away"
    for path in (folder / ".ipynb_checkpoints", away):
        path.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["a"]}), folder / "a.parquet")
    pq.write_table(pa.table({"text": ["a"]}), folder / ".ipynb_checkpoints" / "a-checkpoint.parquet")
    (folder / "._x.parquet").write_bytes(b"\0\5\x16\7")
    pq.write_table(pa.table({"text": ["b"]}), folder / "b.PARQUET")
    (folder / "c.json.gz").write_bytes(gzip.compress(lines("c")))
    (folder / "d.jsonl.zst").write_bytes(zstd(lines("d")))
    (away / "e.JSONL.GZ").write_bytes(gzip.compress(lines("e")))
    (folder / "linked").symlink_to(away)
    (folder / "f.jsonl.bz2").write_bytes(b"")
    (folder / "g.parquet.gz").write_bytes(b"")
    (folder / "dataset_info.json").write_text("{}")
    assert texts_of(folder) == ["a", "b", "c", "d", "e"]
    left_out = find_files(str(folder)).left_out
    assert left_out == {"files of metadata": 1, ".jsonl.bz2": 1, ".parquet.gz": 1}
    assert describe_left_out(left_out) == "1 .jsonl.bz2, 1 .parquet.gz, 1 files of metadata"


def test_plain_json_files_are_text_unless_their_name_is_one_of_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.JSON").write_bytes(lines("a"))
    (tmp_path / "b.json").write_bytes(lines("b"))
    (tmp_path / "c.jsonl").write_bytes(lines("c"))
    (tmp_path / "dataset_info.json").write_bytes(lines("d"))
    assert texts_of(tmp_path) == texts_of(f"{tmp_path}/*") == ["a", "b", "c"]
    assert texts_of(f"{tmp_path}/*.{{json,jsonl}}") == ["b", "c"]
    assert texts_of(f"{tmp_path}/dataset_info.json") == ["d"]
    assert usable_files(["x.json", "x/config.json", "y.txt"]) == {"x.json"}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.JSON.GZ", "a.jsonl.gz", "a.json.zst", "a.JsonL.ZST"])
def test_lines_are_the_same_however_they_are_compressed(name: str, tmp_path: Path) -> None:
    pack: Callable = zstd if name.lower().endswith("zst") else gzip.compress if name.lower().endswith("gz") else bytes
    long = "long " * 200_000
    members = [lines("one", "two"), lines(long), b"", b'{"text": "not ended"}']
    (tmp_path / name).write_bytes(b"".join(map(pack, members)))
    assert texts_of(tmp_path) == ["one", "two", long, "not ended"]


DAMAGES = [(name, fault) for name in ("a.jsonl.gz", "a.json.zst") for fault in ("cut", "other", "rubbish behind")]


@pytest.mark.parametrize(("name", "fault"), [*DAMAGES, ("a.json.gz", "flipped")])  # zstd has no checksum unless asked
def test_a_damaged_file_is_named(name: str, fault: str, tmp_path: Path) -> None:
    pack = zstd if name.endswith("zst") else gzip.compress
    plain = lines(*(f"{i} {i**5} {i**7}" for i in range(2000)))
    data = pack(plain)
    middle = len(data) // 2
    damaged = {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes(8) + data[middle + 8 :],
        "other": plain,
        "rubbish behind": data + b"rubbish",
    }
    (tmp_path / name).write_bytes(damaged[fault])
    with pytest.raises(SourceError, match=rf"/{name} is damaged at row \d+ \(.*\): fetch it again"):
        texts_of(tmp_path)


@pytest.mark.parametrize("array", ["[]", '\n  [{"text": "a"},', '[\n{"text": "a"}\n]'])
def test_a_json_array_is_refused(array: str, tmp_path: Path) -> None:
    for name, data in (("a.json", array.encode()), ("a.json.gz", gzip.compress(array.encode()))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=rf"/{name} holds one JSON array; write each of its objects in a line"):
            texts_of(tmp_path / name)
    (tmp_path / "a.jsonl").write_bytes(b'["a"]\n' + lines("b"))
    assert texts_of(tmp_path / "a.jsonl") == [None, "b"]


def test_what_is_there_is_told_where_nothing_is_usable(tmp_path: Path) -> None:
    expected = r"expected files that end in \.parquet, \.jsonl or \.json, the last two also with \.gz or \.zst"
    with pytest.raises(SourceError, match=f"the folder has no files; {expected}"):
        find_files(str(tmp_path))
    for name in ("a.csv", "b.CSV", "c.jsonl.xz", ".d.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        SourceError, match=rf"none of the 3 files there is usable \(2 \.csv, 1 \.jsonl\.xz\); {expected}"
    ):
        find_files(str(tmp_path))
    with pytest.raises(SourceError, match=rf"none of the 1 files there is usable \(1 \.csv\); {expected}"):
        find_files(f"{tmp_path}/a.csv")
    with pytest.raises(SourceError, match=f"there is no such file or folder; {expected}"):
        find_files(f"{tmp_path}/*.parquet")
