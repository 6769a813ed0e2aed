"""Token shards: flat streams of tokens as packed codes, in Arrow IPC files that are memory-mapped.

Column ``codes`` is ``fixed_size_binary(B)``; each value is 8 tokens × B bits, so token 8i starts at a byte for every B.
A shard is one record batch, so its codes are one contiguous piece of the file. The side file maps tokens back to
documents: ``id``, ``first_token``, ``length`` (without the end token), and ``row`` of the source ``file``.
"""

import json
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bitlm import packing
from bitlm.errors import ArtifactError

GROUP = 8  # tokens per value of the column
METADATA = b"bitlm"
DOCS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("first_token", pa.int64()),
        ("length", pa.int64()),
        ("row", pa.int64()),
        ("file", pa.string()),
    ]
)
MOST_BYTES, MOST_DOCUMENTS = 2**28, 2**21  # in a shard, give or take a batch of documents


@dataclass(frozen=True)
class Counts:
    """``tokens`` = Σ lengths + one end token per document + ``filling`` (end tokens that complete the last group)."""

    documents: int
    tokens: int
    filling: int


class ShardWriter:
    """Collects documents in memory (B/8 bytes a token) and writes them as one shard with its side file."""

    def __init__(self, num_bits: int, end_id: int) -> None:
        self._num_bits, self._end_id = num_bits, end_id
        self._packed: list[np.ndarray] = []  # uint8, whole groups
        self._packed_bytes = 0
        self._rest = np.empty(0, dtype=np.uint32)  # tokens of a group that is not complete yet
        self._docs: list[pa.RecordBatch] = []
        self.documents = 0
        self.tokens = 0

    def add(self, tokens: np.ndarray, lengths: np.ndarray, ids: pa.StringArray, rows: np.ndarray, file: str) -> None:
        """Append n documents, each followed by the end token: ``tokens`` uint32 of all of them, their ``lengths``
        int64 [n], their ``ids`` [n], and the ``rows`` int64 [n] of the source ``file`` that they come from."""
        ends = np.cumsum(lengths + 1)  # [n], one past the end token of each
        stream = np.empty(len(self._rest) + len(tokens) + len(ends), dtype=np.uint32)
        stream[: len(self._rest)] = self._rest
        added = stream[len(self._rest) :]
        is_text = np.ones(len(added), dtype=bool)
        is_text[ends - 1] = False
        added[ends - 1] = self._end_id
        added[is_text] = tokens
        self._pack(stream)
        first = self.tokens + ends - lengths - 1
        columns = [ids, first, lengths, rows, pa.repeat(file, len(ends))]
        self._docs.append(pa.record_batch(columns, schema=DOCS_SCHEMA))
        self.documents += len(ends)
        self.tokens += len(added)

    @property
    def full(self) -> bool:
        """Whether it is time to begin another shard: what is in memory has a bound."""
        return self._packed_bytes >= MOST_BYTES or self.documents >= MOST_DOCUMENTS

    def write(self, shard: str | BinaryIO, docs: str | BinaryIO) -> Counts:
        """Fill the last group with end tokens and write both files, to local paths or open files."""
        filling = -self.tokens % GROUP
        self._pack(np.concatenate([self._rest, np.full(filling, self._end_id, dtype=np.uint32)]))
        counts = Counts(self.documents, self.tokens + filling, filling)
        kind = pa.binary(self._num_bits)
        meta = {METADATA: json.dumps({"num_bits": self._num_bits, "tokens": counts.tokens}).encode()}
        packed = np.concatenate(self._packed)
        self._packed = []
        column = pa.Array.from_buffers(kind, counts.tokens // GROUP, [None, pa.py_buffer(packed)])
        schema = pa.schema([pa.field("codes", kind, nullable=False)], metadata=meta)
        with pa.ipc.new_file(shard, schema) as writer:
            writer.write_batch(pa.record_batch([column], schema=schema))
        side = pa.Table.from_batches(self._docs, schema=DOCS_SCHEMA)
        pq.write_table(side, docs, compression="zstd", use_dictionary=["file"])
        return counts

    def _pack(self, tokens: np.ndarray) -> None:
        whole = len(tokens) // GROUP * GROUP
        self._packed.append(packing.pack(tokens[:whole], self._num_bits))
        self._packed_bytes += self._packed[-1].nbytes
        self._rest = tokens[whole:].copy()


class Shard:
    """Reader of one shard at a local path that ``Store.local_file`` verified. The file is mapped, not read.

    Raises ArtifactError where the file is not a shard.
    """

    def __init__(self, path: str) -> None:
        try:
            with pa.memory_map(path) as source:
                batch = pa.ipc.open_file(source).get_batch(0)
        except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError; so is a file without a record batch
            raise ArtifactError(f"{path} is not a token shard ({error}): make the tokens artifact again") from error
        if METADATA not in (batch.schema.metadata or {}):
            raise ArtifactError(f"{path} is an Arrow file but not a token shard")
        meta = json.loads(batch.schema.metadata[METADATA])
        self.path = path
        self.num_bits: int = meta["num_bits"]
        self.tokens: int = meta["tokens"]
        self._batch = batch  # keeps the mapping alive
        used = self.tokens // GROUP * self.num_bits
        self._bytes = np.frombuffer(batch.column(0).buffers()[1], dtype=np.uint8)[:used]

    def ids(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Ids of tokens ``start`` … ``start + count - 1``, uint32 [count]; by default to the end."""
        packed, inside = self._slice(start, count)
        return packing.unpack(packed, self.num_bits)[inside]

    def codes(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """The same as codes of ±1, float32 [count, B]."""
        packed, inside = self._slice(start, count)
        return packing.unpack_codes(packed, self.num_bits)[inside]

    def rows(self, length: int) -> np.ndarray:
        """The shard cut into packed sequences of ``length`` tokens, a multiple of 8: a view, uint8 [n, length·B/8]."""
        width = length // GROUP * self.num_bits
        whole = self.tokens // length
        return self._bytes[: whole * width].reshape(whole, width)

    def _slice(self, start: int, count: int | None) -> tuple[np.ndarray, slice]:
        """The whole groups that hold the tokens, and where the tokens are in them."""
        stop = self.tokens if count is None else start + count
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        first, last = start // GROUP, -(-stop // GROUP)
        packed = self._bytes[first * self.num_bits : last * self.num_bits]
        return packed, slice(start - first * GROUP, stop - first * GROUP)
