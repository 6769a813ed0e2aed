"""One unit of the tokens stage: from the text column of its files to packed shards, by columns all the way."""

import hashlib
import io
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.artifacts.record import FileEntry
from bitlm.artifacts.store import Store
from bitlm.data.corpus import EXCLUDED_FILE, locate
from bitlm.data.engine import Encoded, TextEncoder
from bitlm.data.rows import derived_id, read_batches
from bitlm.data.shards import ShardWriter
from bitlm.data.sources import check_unchanged
from bitlm.data.splits import fractions
from bitlm.data.textbatch import Fault, TextBatch
from bitlm.data.tokenizer import INFO_FILE, TOKENIZER_FILE, TokenizerInfo
from bitlm.data.tokens import SPLITS, Job, ShardEntry, Unit, UnitRecord, complete, record_path
from bitlm.errors import ArtifactError

TEST_DOCUMENT = "test_document"  # reason of a row whose text must not be trained on
REJECTED_SCHEMA = pa.schema([
    ("reason", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("text", pa.string()),
])  # fmt: skip
SAMPLE_SHARE = 2**-12  # characters that both engines encode, to a byte of text
MOST_SAMPLED = 64  # texts of a batch
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
class UnitResult:
    """``seconds``: CPU time by phase, None where the unit had been finished before; ``peak_bytes``: the most memory
    that the process has held so far."""

    record: UnitRecord
    seconds: dict[str, float] | None
    peak_bytes: int


@dataclass(frozen=True)
class Kit:
    """What a worker keeps between units."""

    encoder: TextEncoder
    info: TokenizerInfo
    excluded: frozenset[bytes]


def encode_unit(unit: Unit, job: Job) -> UnitResult:
    """Make a unit's shards and its record, or return the record where it is complete already.

    Raises SourceError naming file and row for a source file that is damaged or has changed, ArtifactError for a damaged
    input artifact, and where the two engines disagree.
    """
    clock = Clock()
    with clock("load"):
        kit = load_kit(job)
    made = complete(unit, job, kit.info.sha256)
    if made is not None:
        return UnitResult(made, None, _peak())
    store = Store(job.root)

    def put(path: str, data: bytes) -> None:
        storage.write_atomic(storage.join(job.out, path), data)

    output = Output(unit.index, kit.info, clock, put)
    for part in unit.parts:
        url = locate(store, job.corpus, part)
        for batch in clock.each("read", read_batches(url, part.format, job.text_column, job.id_column, part.groups)):
            encode_batch(batch, part.path, kit, job.validation_fraction, output, clock)
        if not part.etag.startswith("sha256-"):
            check_unchanged(part)  # what was read is what was listed
    output.finish()
    record = UnitRecord(
        format=job.format, unit=unit, corpus=job.corpus.fingerprint, tokenizer_sha256=kit.info.sha256,
        documents_in=output.documents_in, shards=output.shards, rejected=output.rejected, written=tuple(output.written),
    )  # fmt: skip
    assert record.documents_in == output.documents + sum(record.rejected.values()), unit
    put(record_path(unit), record.model_dump_json().encode())
    return UnitResult(record, dict(clock.seconds), _peak())


def encode_batch(
    batch: TextBatch, file: str, kit: Kit, validation_fraction: float, output: "Output", clock: Clock
) -> None:
    usable = np.ones(len(batch.rows), dtype=bool)
    usable[list(batch.faults)] = False
    places = np.flatnonzero(usable)
    with clock("text"):
        texts = batch.strings()[places]
    with clock("hash"):
        digests = [hashlib.sha256(text.encode()).digest() for text in texts.tolist()]
        keys = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 4).astype(np.uint64)
        tested = np.fromiter(map(kit.excluded.__contains__, digests), bool, len(digests))
    output.documents_in += len(batch.rows)
    if batch.faults or tested.any():
        output.reject(batch, places[tested].tolist(), file)
    validation = fractions(keys[:, 0]) < validation_fraction
    lengths = np.diff(batch.bounds())
    for split, chosen in zip(SPLITS, (~tested & ~validation, ~tested & validation), strict=True):
        some = np.flatnonzero(chosen)
        if len(some):
            ids = _ids(batch.ids, places[some], some, digests)
            documents = Documents(texts[some].tolist(), ids, batch.rows[places[some]], file)
            _encode_documents(documents, split, keys[some, 3], int(lengths[places[some]].sum()), kit, output, clock)


def _encode_documents(
    documents: "Documents", split: str, keys: np.ndarray, text_bytes: int, kit: Kit, output: "Output", clock: Clock
) -> None:
    with clock("encode"):
        encoded = kit.encoder.encode(documents.texts)
    with clock("compare"):
        due = output.due(split, text_bytes)
        wrong, compared = kit.encoder.difference(documents.texts, encoded, _sample(keys), due)
        output.sampled(split, compared)
    if wrong is not None:
        raise ArtifactError(
            f"{documents.file}: fastokens and tokenizers encode document {documents.ids[wrong].as_py()} (row "
            f"{documents.rows[wrong]}) differently; set tokens.execution.engine=reference, and report the text"
        )
    output.add(split, documents, encoded, text_bytes)


@dataclass(frozen=True)
class Documents:
    """n documents of one split: their texts, ids [n], and the rows int64 [n] of ``file`` that they come from."""

    texts: list[str]
    ids: pa.StringArray
    rows: np.ndarray
    file: str


class Output:
    """The shards, side files and rejected rows of a unit in the making; at most one shard of each split is open.

    Each file is given to ``put`` whole.
    """

    def __init__(self, unit: int, info: TokenizerInfo, clock: Clock, put: Callable[[str, bytes], None]) -> None:
        self._unit, self._info, self._clock, self._put = unit, info, clock, put
        self._writers = {split: self._writer() for split in SPLITS}
        self._text_bytes: Counter[str] = Counter()
        self._due = dict.fromkeys(SPLITS, 1.0)
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

    def add(self, split: str, documents: Documents, encoded: Encoded, text_bytes: int) -> None:
        with self._clock("pack"):
            self._writers[split].add(encoded.ids, encoded.lengths, documents.ids, documents.rows, documents.file)
        self._text_bytes[split] += text_bytes
        if self._writers[split].full:
            self._close(split)

    def reject(self, batch: TextBatch, tests: list[int], file: str) -> None:
        shown = {place: Fault(TEST_DOCUMENT, batch.texts[place].as_py()) for place in tests}
        for place, fault in sorted({**batch.faults, **shown}.items()):
            row, id = int(batch.rows[place]), batch.ids[place].as_py()
            self._rejected.add({"reason": fault.reason, "file": file, "row": row, "id": id, "text": fault.shown})

    def finish(self) -> None:
        for split in SPLITS:
            if self._writers[split].documents:
                self._close(split)
        if self.rejected:
            self._written(f"rejected/{self._unit:05d}.parquet", self._rejected.close())

    def _writer(self) -> ShardWriter:
        return ShardWriter(self._info.num_bits, self._info.end_id)

    def _close(self, split: str) -> None:
        with self._clock("write"):
            writer, self._writers[split] = self._writers[split], self._writer()
            made = self.shards.setdefault(split, [])
            base = f"shards/{split}/{self._unit:05d}-{len(made):03d}"
            shard, docs = io.BytesIO(), io.BytesIO()
            counts = writer.write(shard, docs)
            side, entry = self._written(f"{base}.docs.parquet", docs), self._written(f"{base}.arrow", shard)
            made.append(
                ShardEntry(
                    **entry.model_dump(), documents=counts.documents, tokens=counts.tokens, filling=counts.filling,
                    text_bytes=self._text_bytes.pop(split), docs=side.path, unit=self._unit,
                )
            )  # fmt: skip
            self._due[split] = 1.0

    def _written(self, path: str, made: io.BytesIO) -> FileEntry:
        data = made.getvalue()
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


@lru_cache(maxsize=1)
def _kit(root: str, corpus: str, tokenizer: str, engine: str) -> Kit:
    store = Store(root)
    corpus_record, tokenizer_record = store.load(corpus), store.load(tokenizer)
    with open(store.checked(tokenizer_record, INFO_FILE), "rb") as file:
        info = TokenizerInfo.model_validate_json(file.read())
    with open(store.checked(tokenizer_record, TOKENIZER_FILE), "rb") as file:
        encoder = TextEncoder(file.read(), engine)
    digests = pq.read_table(store.checked(corpus_record, EXCLUDED_FILE))["text_sha256"].to_pylist()
    return Kit(encoder, info, frozenset(map(bytes.fromhex, digests)))


def load_kit(job: Job) -> Kit:
    """The verified tokenizer and the excluded texts; kept for the next unit of the same job. Raises ArtifactError."""
    return _kit(job.root, job.corpus.id, job.tokenizer.id, job.engine)


def _sample(keys: np.ndarray) -> np.ndarray:
    """Places of the ``MOST_SAMPLED`` least keys (uint64 [n]), in the order of their keys."""
    least = np.argpartition(keys, MOST_SAMPLED)[:MOST_SAMPLED] if len(keys) > MOST_SAMPLED else np.arange(len(keys))
    return least[np.argsort(keys[least])]


def _ids(ids: pa.StringArray, places: np.ndarray, order: np.ndarray, digests: Sequence[bytes]) -> pa.StringArray:
    """Ids at some places of a batch; a row without one has it from its text, whose digest is at ``order``."""
    chosen = ids.take(pa.array(places))
    if not chosen.null_count:
        return chosen
    return pc.coalesce(chosen, pa.array([derived_id(digests[place]) for place in order.tolist()], pa.string()))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
