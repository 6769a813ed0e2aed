"""Units of the tokens stage: a range of row groups of one source file becomes one shard for each split.

A unit's files are a function of the unit alone. Its record is written last, so a unit without one is simply done again.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config.stages import Frozen
from bitlm.data.corpus import EXCLUDED_FILE, Corpus, TextFile, locate
from bitlm.data.rows import Row, derived_id, read_rows
from bitlm.data.shards import ShardWriter
from bitlm.data.splits import digest, text_split
from bitlm.data.tokenizer import load_tokenizer

TOKENS_FILE = "tokens.json"
SPLITS = ("train", "validation")
TEST_DOCUMENT = "test_document"  # reason of a row whose text must not be trained on
REJECTED_SCHEMA = pa.schema([
    ("reason", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("text", pa.string()),
])  # fmt: skip


class Unit(Frozen):
    """Row groups ``first_group`` … ``last_group - 1`` of a file; the whole file where they are None."""

    index: int
    file: TextFile
    first_group: int | None
    last_group: int | None

    @property
    def row_groups(self) -> range | None:
        return None if self.first_group is None else range(self.first_group, self.last_group)

    @property
    def bytes(self) -> int:
        groups = self.row_groups
        return self.file.bytes if groups is None else sum(self.file.row_groups[i].bytes for i in groups)


class ShardEntry(Frozen):
    """A shard in ``tokens.json``; ``docs`` is its side file, ``row_groups`` the half-open range of ``source``."""

    path: str
    bytes: int
    sha256: str
    documents: int
    tokens: int
    filling: int
    text_bytes: int
    docs: str
    source: str
    row_groups: tuple[int, int] | None


class WrittenFile(Frozen):
    path: str
    bytes: int
    sha256: str


class UnitRecord(Frozen):
    """What came of a unit. ``documents_in`` = Σ documents of the shards + Σ rejected."""

    unit: Unit
    documents_in: int
    shards: dict[str, ShardEntry]
    rejected: dict[str, int]
    written: tuple[WrittenFile, ...]


@dataclass(frozen=True)
class Job:
    """What all units share; plain data, so that it can travel to any worker."""

    root: str
    out: str
    scratch: str
    corpus: Corpus
    corpus_record: Record
    tokenizer_record: Record


def plan(files: Sequence[TextFile], unit_bytes: int) -> list[Unit]:
    """Cut files into units of at least ``unit_bytes`` of text where their row groups allow it; never across files."""
    units: list[Unit] = []
    for file in files:
        for first, last in _ranges(file, unit_bytes):
            units.append(Unit(index=len(units), file=file, first_group=first, last_group=last))
    return units


def encode_unit(unit: Unit, job: Job) -> UnitRecord:
    """Make a unit's shards and its record, or return the record where it is complete already.

    Raises SourceError naming file and row for a damaged source file, ArtifactError for a damaged input artifact.
    """
    record_url = storage.join(job.scratch, "units", f"{unit.index:05d}.json")
    made = _complete(record_url, unit, job)
    if made is not None:
        return made
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one unit, one core
    store = Store(job.root)
    tokenizer = load_tokenizer(store, job.tokenizer_record)
    excluded = _excluded(store.checked(job.corpus_record, EXCLUDED_FILE), job.corpus_record.fingerprint)
    writers = {split: ShardWriter(tokenizer.info.num_bits, tokenizer.info.end_id) for split in SPLITS}
    text_bytes: Counter[str] = Counter()
    rejected: list[dict] = []
    documents_in = 0
    url = locate(store, job.corpus_record, unit.file)
    for rows in read_rows(url, unit.file.format, job.corpus.text_column, job.corpus.id_column, unit.row_groups):
        documents_in += len(rows)
        usable = []
        for row, reason, key in _judged(rows, excluded):
            if reason is None:
                usable.append((row, key))
            else:
                rejected.append(
                    {"reason": reason, "file": unit.file.path, "row": row.row, "id": row.id, "text": row.text}
                )
        encoded = tokenizer.encode_batch([row.text for row, _ in usable])
        for (row, key), ids in zip(usable, encoded, strict=True):
            split = text_split(key, job.corpus.validation_fraction)
            writers[split].add(row.id if row.id is not None else derived_id(key), row.row, ids)
            text_bytes[split] += len(row.text.encode())
    return _finish(unit, job, record_url, documents_in, writers, text_bytes, rejected)


def _ranges(file: TextFile, unit_bytes: int) -> Iterator[tuple[int | None, int | None]]:
    if file.row_groups is None:
        yield None, None
        return
    first, size = 0, 0
    for index, group in enumerate(file.row_groups):
        size += group.bytes
        if size >= unit_bytes or index == len(file.row_groups) - 1:
            yield first, index + 1
            first, size = index + 1, 0


def _judged(rows: Iterable[Row], excluded: frozenset[bytes]) -> Iterator[tuple[Row, str | None, bytes]]:
    """(row, reason to reject it, sha256 of its text)."""
    for row in rows:
        key = digest(row.text) if row.reason is None else b""
        yield row, TEST_DOCUMENT if key in excluded else row.reason, key


def _finish(
    unit: Unit, job: Job, record_url: str, documents_in: int, writers: dict[str, ShardWriter],
    text_bytes: Counter[str], rejected: list[dict],
) -> UnitRecord:  # fmt: skip
    shards: dict[str, ShardEntry] = {}
    written: list[WrittenFile] = []
    near = storage.local_path(job.scratch) if storage.is_local(job.scratch) else None
    with tempfile.TemporaryDirectory(dir=near) as folder:

        def put(local: str, path: str) -> WrittenFile:
            size, sha256 = storage.upload(local, storage.join(job.out, path))
            written.append(WrittenFile(path=path, bytes=size, sha256=sha256))
            return written[-1]

        for split, writer in writers.items():
            if writer.documents == 0:
                continue
            base = f"shards/{split}/{unit.index:05d}"
            local, local_docs = os.path.join(folder, "shard"), os.path.join(folder, "docs")
            counts = writer.write(local, local_docs)
            docs, shard = put(local_docs, f"{base}.docs.parquet"), put(local, f"{base}.arrow")
            shards[split] = ShardEntry(
                **shard.model_dump(), documents=counts.documents, tokens=counts.tokens, filling=counts.filling,
                text_bytes=text_bytes[split], docs=docs.path, source=unit.file.path,
                row_groups=None if unit.first_group is None else (unit.first_group, unit.last_group),
            )  # fmt: skip
        if rejected:
            local = os.path.join(folder, "rejected")
            pq.write_table(pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA), local, compression="zstd")
            put(local, f"rejected/{unit.index:05d}.parquet")
    assert documents_in == sum(shard.documents for shard in shards.values()) + len(rejected), unit
    reasons = dict(sorted(Counter(row["reason"] for row in rejected).items()))
    made = UnitRecord(unit=unit, documents_in=documents_in, shards=shards, rejected=reasons, written=tuple(written))
    storage.write_atomic(record_url, made.model_dump_json().encode())
    return made


def _complete(record_url: str, unit: Unit, job: Job) -> UnitRecord | None:
    """The record of a finished unit, if there is one and its files are what it says."""
    data = storage.read_if_exists(record_url)
    if data is None:
        return None
    made = UnitRecord.model_validate_json(data)
    if made.unit != unit:
        return None
    for file in made.written:
        url = storage.join(job.out, file.path)
        if not storage.exists(url) or storage.sha256(url) != (file.bytes, file.sha256):
            return None
    return made


def to_json(summary: dict[str, Any]) -> bytes:
    return json.dumps(summary, indent=1, sort_keys=True).encode()


@lru_cache(maxsize=1)
def _excluded(path: str, _fingerprint: str) -> frozenset[bytes]:
    return frozenset(map(bytes.fromhex, pq.read_table(path)["text_sha256"].to_pylist()))
