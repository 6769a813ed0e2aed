import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from tokenizers import Tokenizer

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import PretrainConfig
from bitlm.data.reading.batches import open_pretrain
from bitlm.data.shards import encode
from bitlm.data.shards import units as units
from bitlm.data.shards.encode import UnitResult
from bitlm.data.shards.format import Shard
from bitlm.data.sources.corpus import load_corpus
from bitlm.data.sources.splits import digest, text_split
from bitlm.errors import ArtifactError, SourceError
from bitlm_tasks import tokens
from tests.tasks.data_stages import digests, run_stages

pytestmark = pytest.mark.usefixtures("ray_session")

OWN, LITERAL = "A text of its own.", "<|endoftext|> stays <think>"


@pytest.fixture(scope="module")
def source(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real FineWeb rows (all ids null) in row groups of 20, and a jsonl file with faulty lines and a test text."""
    folder = tmp_path_factory.mktemp("source")
    table = pq.read_table(samples / "fineweb" / "first_rows.parquet")
    pq.write_table(table, folder / "a.parquet", row_group_size=20)
    test_document = pq.read_table(samples / "xsum" / "test.parquet")["document"][5].as_py()
    rows = [{"text": OWN, "id": "own"}, {"text": None}, {"text": ""}, {"text": test_document, "id": "t"}]
    lines = [*map(json.dumps, rows), "no json", '{"text": "lone \\ud800"}', json.dumps({"text": LITERAL})]
    (folder / "b.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def settings(source: Path, samples: Path) -> list[str]:
    return [
        "corpus.name=real",
        f"corpus.source={source}",
        f"corpus.summaries={samples}/xsum",
        f"tokenizer.source={samples}/qwen3/tokenizer.json",
        "corpus.validation_fraction=0.1",
        "tokens.unit_bytes=200000",
    ]


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    root = tmp_path_factory.mktemp("root")
    return root, run_stages(root, *settings)["tokens"]


def test_shards_hold_what_the_library_encodes(undisturbed: tuple[Path, Record], source: Path, samples: Path) -> None:
    root, record = undisturbed
    summary = json.loads((root / record.id / "tokens.json").read_text())
    rows = pq.read_table(source / "a.parquet").to_pylist()
    texts = [*(row["text"] for row in rows), OWN, LITERAL]
    reference = Tokenizer.from_file(str(samples / "qwen3" / "tokenizer.json"))
    plain = {text: encoding.ids for text, encoding in zip(texts, reference.encode_batch(texts), strict=True)}
    decoded = []
    for split, found in summary["splits"].items():
        assert len(found["shards"]) > 1
        for entry in found["shards"]:
            shard = Shard(str(root / record.id / entry["path"]))
            docs = pq.read_table(root / record.id / entry["docs"]).to_pylist()
            position = 0
            for doc in docs:
                assert doc["first_token"] == position
                ids = shard.ids(position, doc["length"]).tolist()
                text = reference.decode(ids, skip_special_tokens=False)
                assert text_split(digest(text), 0.1) == split
                if text in plain and "<|endoftext|>" not in text:
                    assert ids == plain[text]
                assert doc["id"] in (f"sha256:{digest(text).hex()[:32]}", "own")
                assert max(ids) < 151_643
                decoded.append(text)
                position += doc["length"] + 1
                assert shard.ids(position - 1, 1)[0] == 151_643
            assert set(shard.ids(position).tolist()) <= {151_643}
            assert shard.tokens - position == entry["filling"] < 8
    assert sorted(decoded) == sorted(texts)


def test_counts_add_up_and_nothing_is_dropped(undisturbed: tuple[Path, Record], source: Path) -> None:
    root, record = undisturbed
    summary = json.loads((root / record.id / "tokens.json").read_text())
    rejected = pa.concat_tables([pq.read_table(path) for path in sorted((root / record.id).glob("rejected/*.parquet"))])
    assert [(row["reason"], row["file"], row["row"]) for row in rejected.to_pylist()] == [
        ("no_text", "b.jsonl", 1),
        ("empty_text", "b.jsonl", 2),
        ("test_document", "b.jsonl", 3),
        ("invalid_json", "b.jsonl", 4),
        ("invalid_unicode", "b.jsonl", 5),
    ]
    assert summary["rejected"] == dict.fromkeys(sorted(rejected["reason"].to_pylist()), 1)
    splits = summary["splits"].values()
    assert summary["documents_in"] == 307 == sum(split["documents"] for split in splits) + len(rejected)
    for split in splits:
        lengths = sum(
            sum(pq.read_table(root / record.id / entry["docs"])["length"].to_pylist()) for entry in split["shards"]
        )
        assert split["tokens"] == lengths + split["documents"] + split["filling"]
    texts = [*pq.read_table(source / "a.parquet")["text"].to_pylist(), OWN, LITERAL]
    assert sum(split["text_bytes"] for split in splits) == sum(len(text.encode()) for text in texts)
    assert record.metrics["rejected_by_reason"] == summary["rejected"]


def test_training_reads_the_artifact(undisturbed: tuple[Path, Record]) -> None:
    root, record = undisturbed
    batches = open_pretrain(Store(str(root)), record, PretrainConfig(sequence_length=64))
    assert batches.train(range(4)).input_ids.shape == (4, 64)
    assert batches.validation_count > 0
    assert 3 < batches.bytes_per_token < 6


def test_the_number_of_workers_changes_no_byte(
    undisturbed: tuple[Path, Record], settings: list[str], tmp_path: Path
) -> None:
    alone = run_stages(tmp_path, *settings, "tokens.execution.num_workers=1")["tokens"]
    assert alone.fingerprint == undisturbed[1].fingerprint
    assert digests(alone) == digests(undisturbed[1])


def test_a_killed_worker_leaves_no_trace(
    undisturbed: tuple[Path, Record], settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "killed"

    def kill_once(real: Callable[..., Any], *args: Any) -> Any:
        result = real(*args)
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def fragile(unit: units.Unit, job: units.Job) -> UnitResult:
        if unit.index == 1:  # die between the first file of the unit and its record
            put = storage.write_atomic
            storage.write_atomic = lambda *args: kill_once(put, *args)
            try:
                return encode.encode_unit(unit, job)
            finally:
                storage.write_atomic = put
        return encode.encode_unit(unit, job)

    monkeypatch.setattr(tokens, "encode_unit", ray.remote(max_retries=2)(fragile))
    record = run_stages(tmp_path / "root", *settings)["tokens"]
    assert flag.exists()
    assert digests(record) == digests(undisturbed[1])
    assert not list((tmp_path / "root").glob(".work/*/*"))


def test_a_run_that_died_is_continued_not_repeated(
    undisturbed: tuple[Path, Record], settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"

    def dying(unit: units.Unit, job: units.Job) -> UnitResult:
        if unit.index == 3:
            raise OSError("the disk is full")
        return encode.encode_unit(unit, job)

    def logging(unit: units.Unit, job: units.Job) -> UnitResult:
        result = encode.encode_unit(unit, job)
        with log.open("a") as file:
            file.write(f"{unit.index}:{'kept' if result.seconds is None else 'made'}\n")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "encode_unit", ray.remote(dying))
        with pytest.raises(OSError, match="the disk is full"):
            run_stages(tmp_path / "root", *settings, "tokens.execution.num_workers=1")
    out = next((tmp_path / "root").glob(".work/tokens/*/out"))
    assert sorted(path.name for path in out.glob("units/*")) == ["00000.json", "00001.json", "00002.json"]
    shard = out / "shards/train/00001-000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "encode_unit", ray.remote(logging))
        record = run_stages(tmp_path / "root", *settings)["tokens"]
    done = dict(line.split(":") for line in log.read_text().split())
    assert (done["0"], done["1"], done["2"], done["3"]) == ("kept", "made", "kept", "made")
    assert digests(record) == digests(undisturbed[1])


def test_a_flipped_byte_is_refused_by_name(undisturbed: tuple[Path, Record], settings: list[str]) -> None:
    root, record = undisturbed
    store = Store(str(root))
    path = next(entry.path for entry in record.files if entry.path.startswith("shards/train"))
    file = root / record.id / path
    original = file.read_bytes()
    changed = bytearray(original)
    changed[len(changed) // 3] ^= 0x10
    file.write_bytes(changed)
    try:
        with pytest.raises(ArtifactError, match=f"{record.id}.*{path}"):
            open_pretrain(store, record, PretrainConfig(sequence_length=64, window_shards=99)).train(range(1))
        with pytest.raises(ArtifactError, match=f"{record.id}.*{path}"):
            run_stages(root, *settings)
    finally:
        file.write_bytes(original)


def test_a_source_that_changed_or_broke_stops_the_run(samples: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [f"{i * 7919:x} " * 50 for i in range(300)]}), path, row_group_size=100)
    given = [
        f"corpus.source={path}",
        f"corpus.summaries={samples}/xsum",
        f"tokenizer.source={samples}/qwen3/tokenizer.json",
    ]
    made = run_stages(tmp_path / "root", *given, last="tokenizer")
    stat, data = path.stat(), bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 300] = bytes(300)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(SourceError, match=r"t\.parquet is damaged at row 100"):
        run_stages(tmp_path / "root", *given)
    os.utime(path)
    store = Store(str(tmp_path / "root"))
    described = load_corpus(store, made["corpus"])
    unit = units.plan(described.files, 1)[0]
    job = units.Job(store.root, str(tmp_path / "o"), 2, made["corpus"], made["tokenizer"], "text", None, 0.01)
    with pytest.raises(SourceError, match=r"t\.parquet changed since the corpus was made"):
        encode.encode_unit(unit, job)


def test_units_are_cut_by_bytes_and_small_files_share_one() -> None:
    group = [{"rows": size, "bytes": size} for size in (5, 5, 12, 3, 3)]
    common = {"format": "parquet", "bytes": 100, "etag": "e", "columns": {}}
    files = [
        units.TextFile(url="a", path="a", row_groups=group, rows=28, **common),
        units.TextFile(url="b", path="b", row_groups=group[:1], rows=5, **common),
        units.TextFile(url="c", path="c", **{**common, "format": "jsonl"}),
        units.TextFile(url="d", path="d", row_groups=[], rows=0, **common),
        units.TextFile(url="e", path="e", row_groups=group[:1], rows=5, **common),
    ]
    planned = units.plan(files, 10)
    assert [[(part.path, part.row_groups, part.first_row, part.rows) for part in unit.parts] for unit in planned] == [
        [("a", (0, 2), 0, 10)],
        [("a", (2, 3), 10, 12)],
        [("a", (3, 5), 22, 6), ("b", (0, 1), 0, 5)],
        [("c", None, None, None)],
        [("e", (0, 1), 0, 5)],
    ]
    assert [unit.bytes for unit in planned] == [10, 12, 11, 100, 5]
    assert [unit.index for unit in planned] == list(range(5))
    tiny = [files[1].model_copy(update={"path": f"{number:05d}"}) for number in range(10_000)]
    spread = units.plan(tiny, 10**9)
    assert [part.path for unit in spread for part in unit.parts] == [file.path for file in tiny]
    assert len(spread) == -(-10_000 // units.MOST_PARTS)
