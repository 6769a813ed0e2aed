"""What a unit of the tokens stage writes: its shards with their side files, and the rows that it rejects."""

import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bitlm.artifacts.record import FileEntry
from bitlm.data.shards.engine import Encoded
from bitlm.data.shards.format import ShardWriter
from bitlm.data.shards.tokenizer import TokenizerInfo
from bitlm.data.shards.units import TOKEN_SPLITS, ShardEntry
from bitlm.data.sources.textbatch import Fault, TextBatch

TEST_DOCUMENT = "test_document"  # reason of a row whose text must not be trained on
REJECTED_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("text", pa.string()),
    ]
)
SAMPLE_SHARE = 2**-12  # characters that both engines encode, to a byte of text
_REJECTED_AT_ONCE = 1000
_T = TypeVar("_T")


class Clock:
    """CPU seconds of this process by phase of the work."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[phase] += time.process_time() - start

    def each(self, phase: str, items: Iterable[_T]) -> Iterator[_T]:
        """The items, the making of each counted."""
        iterator = iter(items)
        while True:
            with self(phase):
                item = next(iterator, None)
            if item is None:
                return
            yield item


@dataclass(frozen=True)
class Documents:
    """n documents of one split: their texts and the UTF-8 bytes of all of them, ``keys`` uint64 [n], which are the last
    8 bytes of the sha256 of each text, ids [n], and the rows int64 [n] of ``file`` that they come from."""

    texts: list[str]
    text_bytes: int
    keys: np.ndarray
    ids: pa.StringArray
    rows: np.ndarray
    file: str


class Output:
    """The shards, side files and rejected rows of a unit in the making; at most one shard of each split is open.

    Each file is given to ``put`` whole.
    """

    def __init__(self, unit: int, info: TokenizerInfo, clock: Clock, put: Callable[[str, bytes], None]) -> None:
        self._unit, self._info, self.clock, self._put = unit, info, clock, put
        self._writers = {split: self._writer() for split in TOKEN_SPLITS}
        self._text_bytes: Counter[str] = Counter()
        self._due = dict.fromkeys(TOKEN_SPLITS, 1.0)
        self._rejected = Rejected()
        self.documents_in = 0
        self.shards: dict[str, list[ShardEntry]] = {}
        self.written: list[FileEntry] = []

    @property
    def rejected(self) -> dict[str, int]:
        return dict(sorted(self._rejected.reasons.items()))

    @property
    def documents(self) -> int:
        """In the shards that are written."""
        return sum(entry.documents for entries in self.shards.values() for entry in entries)

    def due(self, split: str, text_bytes: int) -> float:
        """How many characters of the sample are due after so much more text: ``SAMPLE_SHARE`` of all, and one in any
        case at the beginning of a shard."""
        self._due[split] += SAMPLE_SHARE * text_bytes
        return self._due[split]

    def sampled(self, split: str, characters: int) -> None:
        self._due[split] -= characters

    def add(self, split: str, documents: Documents, encoded: Encoded) -> None:
        with self.clock("pack"):
            self._writers[split].add(encoded.ids, encoded.lengths, documents.ids, documents.rows, documents.file)
        self._text_bytes[split] += documents.text_bytes
        if self._writers[split].full:
            self._close(split)

    def reject(self, batch: TextBatch, tests: list[int], file: str) -> None:
        shown = {place: Fault(TEST_DOCUMENT, batch.texts[place].as_py()) for place in tests}
        for place, fault in sorted({**batch.faults, **shown}.items()):
            row, id = int(batch.rows[place]), batch.ids[place].as_py()
            self._rejected.add({"reason": fault.reason, "file": file, "row": row, "id": id, "text": fault.shown})

    def finish(self) -> None:
        for split in TOKEN_SPLITS:
            if self._writers[split].documents:
                self._close(split)
        if self.rejected:
            self._written(f"rejected/{self._unit:05d}.parquet", self._rejected.close())

    def _writer(self) -> ShardWriter:
        return ShardWriter(self._info.num_bits, self._info.end_id)

    def _close(self, split: str) -> None:
        with self.clock("write"):
            writer, self._writers[split] = self._writers[split], self._writer()
            entries = self.shards.setdefault(split, [])
            base = f"shards/{split}/{self._unit:05d}-{len(entries):03d}"
            shard, docs = io.BytesIO(), io.BytesIO()
            counts = writer.write(shard, docs)
            side, entry = self._written(f"{base}.docs.parquet", docs), self._written(f"{base}.arrow", shard)
            entries.append(
                ShardEntry(
                    **entry.model_dump(),
                    documents=counts.documents,
                    tokens=counts.tokens,
                    filling=counts.filling,
                    text_bytes=self._text_bytes.pop(split),
                    docs=side.path,
                    unit=self._unit,
                )
            )
            self._due[split] = 1.0

    def _written(self, path: str, content: io.BytesIO) -> FileEntry:
        data = content.getvalue()
        self._put(path, data)
        self.written.append(FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        return self.written[-1]


class Rejected:
    """Rows that are not usable, on their way to a parquet file; a bounded number of them as Python objects."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self._rows: list[dict] = []
        self._sink = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict) -> None:
        self.reasons[row["reason"]] += 1
        self._rows.append(row)
        if len(self._rows) == _REJECTED_AT_ONCE:
            self._flush()

    def close(self) -> io.BytesIO:
        self._flush()
        self._writer.close()
        return self._sink

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, REJECTED_SCHEMA, compression="zstd")
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=REJECTED_SCHEMA))
            self._rows = []
