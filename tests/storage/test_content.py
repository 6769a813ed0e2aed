import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.storage import content
from bitlm.storage.content import BLOCK_BYTES, BLOCKS, WHOLE_BYTES, content_tag, content_tags


def test_every_byte_of_a_short_file_counts(tmp_path: Path) -> None:
    path, data = tmp_path / "f", bytearray(os.urandom(1000))
    tags = set()
    for place in range(0, 1000, 10):
        data[place] ^= 1
        path.write_bytes(data)
        tags.add(content_tag(str(path)))
    assert len(tags) == 100
    (tmp_path / "g").write_bytes(data)
    assert content_tag(str(tmp_path / "g")) == content_tag(str(path))


def test_of_a_long_file_the_size_and_blocks_at_even_distances_count(tmp_path: Path) -> None:
    path, size = tmp_path / "f", WHOLE_BYTES + 12345
    data = np.frombuffer(os.urandom(size), np.uint8).copy()
    covered = np.zeros(size, bool)
    for start in np.linspace(0, size - BLOCK_BYTES, BLOCKS):
        covered[int(start) : int(start) + BLOCK_BYTES] = True
    assert covered[[0, -1]].all()

    def tag() -> str:
        path.write_bytes(data)
        return content_tag(str(path))

    before = tag()
    for place in np.random.default_rng(0).integers(0, size, 40).tolist():
        data[place] ^= 1
        assert (tag() != before) == covered[place], place
        data[place] ^= 1
    data = data[:-1]
    assert tag() != before


def test_the_footer_of_a_parquet_file_counts(tmp_path: Path) -> None:
    """With many row groups the footer is far longer than a block, so its beginning is in none of them."""
    path = tmp_path / "t.parquet"
    table = pa.table({f"column{i}": [os.urandom(20).hex() for _ in range(2000)] for i in range(20)})
    pq.write_table(table, path, row_group_size=10)
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    size, distance = len(data), (len(data) - BLOCK_BYTES) // (BLOCKS - 1)
    assert footer > 4 * BLOCK_BYTES
    assert distance > BLOCK_BYTES
    before = content_tag(str(path))
    for start in range(size - 8 - footer, size - 8, footer // 16):
        data[start] ^= 1
        path.write_bytes(data)
        assert content_tag(str(path)) != before
        data[start] ^= 1


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for i in range(5):
        path = tmp_path / f"{i}.jsonl"
        path.write_text(str(i))
        paths.append(str(path))
    return paths


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the files that are read."""
    paths: list[str] = []

    def counted(path: str) -> str:
        paths.append(path)
        return content_tag(path)

    monkeypatch.setattr(content, "content_tag", counted)
    return paths


def test_a_file_is_read_once(
    files: list[str], read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    time.sleep(0.05)
    cache = str(tmp_path / "cache")
    tags = content_tags(files, cache)
    assert tags == [content_tag(path) for path in files]
    assert sorted(read) == files
    assert content_tags(files[::-1], cache) == tags[::-1]
    assert sorted(read) == files
    Path(files[2]).write_text("x")
    changed = content_tags(files, cache)
    assert read[5:] == [files[2]]
    assert [a == b for a, b in zip(tags, changed, strict=True)] == [True, True, False, True, True]


def test_a_change_that_keeps_size_and_modification_time_is_seen(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    cache = str(tmp_path / "cache")
    os.utime(files[0], (1, 1))
    time.sleep(0.05)
    before = content_tags(files, cache)
    Path(files[0]).write_text("x")
    os.utime(files[0], (1, 1))
    assert content_tags(files, cache)[0] != before[0]


def test_a_file_that_was_just_written_is_not_remembered(files: list[str], read: list[str], tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    content_tags(files, cache)
    content_tags(files, cache)
    assert len(read) == 10


@pytest.mark.parametrize("damage", [b"[", b"[]", b'{"a": 1}', b"\xff"])
def test_a_damaged_memory_is_written_anew(
    files: list[str], read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    (tmp_path / content.MEMORY_FILE).write_bytes(damage)
    time.sleep(0.05)
    assert content_tags(files, str(tmp_path)) == content_tags(files, str(tmp_path))
    assert sorted(read) == files


def test_without_a_folder_for_the_memory_files_are_read_each_time(files: list[str], read: list[str]) -> None:
    assert content_tags(files, "/dev/null/x") == content_tags(files, "/dev/null/x")
    assert len(read) == 10


def test_the_memory_has_a_bound(
    files: list[str], read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    monkeypatch.setattr(content, "MOST_REMEMBERED", 3)
    time.sleep(0.05)
    content_tags(files, str(tmp_path / "cache"))
    content_tags(files[2:], str(tmp_path / "cache"))
    assert len(read) == 5
