from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import add_document

from bitlm.data.shards.format import Counts, Shard, ShardWriter
from bitlm.errors import ArtifactError

END = 1


def write(folder: Path, documents: list[list[int]], num_bits: int, name: str = "s") -> tuple[Path, Path, Counts]:
    writer = ShardWriter(num_bits, END)
    for row, ids in enumerate(documents):
        add_document(writer, f"doc-{row}", row, ids)
    path, docs = folder / f"{name}.arrow", folder / f"{name}.docs.parquet"
    return path, docs, writer.write(str(path), str(docs))


def joined(documents: list[list[int]]) -> list[int]:
    flat = [id for ids in documents for id in (*ids, END)]
    return flat + [END] * (-len(flat) % 8)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_ids_and_codes_equal_the_plain_stream(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    num_bits = data.draw(st.integers(2, 32))
    documents = data.draw(st.lists(st.lists(st.integers(0, 2**num_bits - 1), max_size=20), min_size=1, max_size=8))
    path, docs, counts = write(tmp_path_factory.mktemp("shard"), documents, num_bits)
    expected = joined(documents)
    shard = Shard(str(path))
    assert shard.tokens == counts.tokens == len(expected)
    assert counts.tokens == sum(map(len, documents)) + counts.documents + counts.filling
    start = data.draw(st.integers(0, len(expected)))
    count = data.draw(st.integers(0, len(expected) - start))
    ids = shard.ids(start, count)
    assert ids.dtype == np.uint32
    assert ids.tolist() == expected[start : start + count]
    bits = [[1.0 if id >> b & 1 else -1.0 for b in reversed(range(num_bits))] for id in expected[start : start + count]]
    assert shard.codes(start, count).tolist() == bits
    rows = pq.read_table(docs).to_pylist()
    assert [shard.ids(row["first_token"], row["length"]).tolist() for row in rows] == documents
    assert [row["id"] for row in rows] == [f"doc-{i}" for i in range(len(documents))]


def test_format_on_disk_is_packed_bits_most_significant_first(tmp_path: Path) -> None:
    documents = [list(range(1000, 1050)), [3, 151_668]]
    path, _, _ = write(tmp_path, documents, 18)
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.schema.field("codes").type == pa.binary(18)
    bits = "".join(f"{byte:08b}" for value in table["codes"].to_pylist() for byte in value)
    assert [int(bits[i : i + 18], 2) for i in range(0, len(bits), 18)] == joined(documents)


def test_a_large_shard_is_one_piece_and_its_overhead_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 151_669, size).tolist() for size in rng.integers(0, 3000, 300)]
    path, _, counts = write(tmp_path, documents, 18)
    assert Shard(str(path)).ids().tolist() == joined(documents)
    assert path.stat().st_size < 1.01 * 2.25 * counts.tokens


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    documents = [list(range(i % 50)) for i in range(500)]
    one, other = (write(tmp_path, documents, 11, name) for name in ("a", "b"))
    assert [path.read_bytes() for path in one[:2]] == [path.read_bytes() for path in other[:2]]


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_bytes(b"not arrow at all" * 10)
    with pytest.raises(ArtifactError, match=r"x\.arrow is not a token shard"):
        Shard(str(tmp_path / "x.arrow"))
    with (
        pa.OSFile(str(tmp_path / "z.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("codes", pa.binary(9))])),
    ):
        pass
    with pytest.raises(ArtifactError, match=r"z\.arrow is not a token shard"):
        Shard(str(tmp_path / "z.arrow"))
    table = pa.table({"codes": [b"x"]})
    with pa.OSFile(str(tmp_path / "y.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ArtifactError, match=r"y\.arrow is an Arrow file but not a token shard"):
        Shard(str(tmp_path / "y.arrow"))
