"""Token shards: flat streams of tokens as packed codes, in Arrow IPC files that are memory-mapped.

Column ``codes`` is ``fixed_size_binary(B)``; each value is 8 tokens × B bits, so token 8i starts at a byte for every B.
A shard is one record batch, so its codes are one contiguous piece of the file. The side file maps tokens back to
documents: ``id``, ``first_token``, ``length`` (without the end token) and ``row`` of the source file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bitlm import packing
from bitlm.errors import ArtifactError

GROUP = 8  # tokens per value of the column
METADATA = b"bitlm"
DOCS_SCHEMA = pa.schema([
    ("id", pa.string()), ("first_token", pa.int64()), ("length", pa.int64()), ("row", pa.int64()),
])  # fmt: skip
_PACK_TOKENS = 2**17  # packed at a time


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
        self._packed = bytearray()
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0
        self._tokens = 0
        self._docs: dict[str, list] = {name: [] for name in DOCS_SCHEMA.names}

    def add(self, id: str, row: int, ids: Sequence[int]) -> None:
        """Append a document's token ids and the end token."""
        for name, value in zip(DOCS_SCHEMA.names, (id, self._tokens, len(ids), row), strict=True):
            self._docs[name].append(value)
        document = np.empty(len(ids) + 1, dtype=np.uint32)
        document[:-1], document[-1] = ids, self._end_id
        self._waiting.append(document)
        self._waiting_tokens += len(document)
        self._tokens += len(document)
        if self._waiting_tokens >= _PACK_TOKENS:
            self._pack()

    @property
    def documents(self) -> int:
        return len(self._docs["id"])

    def write(self, path: str, docs_path: str) -> Counts:
        """Fill the last group with end tokens and write both files to local paths."""
        filling = -self._tokens % GROUP
        self._waiting.append(np.full(filling, self._end_id, dtype=np.uint32))
        self._pack()
        counts = Counts(self.documents, self._tokens + filling, filling)
        kind = pa.binary(self._num_bits)
        meta = {METADATA: json.dumps({"num_bits": self._num_bits, "tokens": counts.tokens}).encode()}
        column = pa.Array.from_buffers(kind, counts.tokens // GROUP, [None, pa.py_buffer(self._packed)])
        schema = pa.schema([pa.field("codes", kind, nullable=False)], metadata=meta)
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([column], schema=schema))
        pq.write_table(pa.table(self._docs, schema=DOCS_SCHEMA), docs_path, compression="zstd")
        return counts

    def _pack(self) -> None:
        ids = np.concatenate(self._waiting)
        whole = len(ids) // GROUP * GROUP
        self._packed += packing.pack(ids[:whole], self._num_bits).tobytes()
        self._waiting = [ids[whole:]]
        self._waiting_tokens = len(ids) - whole


class Shard:
    """Reader of one shard at a local path that ``Store.checked`` verified. The file is mapped, not read.

    Raises ArtifactError where the file is not a shard.
    """

    def __init__(self, path: str) -> None:
        try:
            with pa.memory_map(path) as source:
                batch = pa.ipc.open_file(source).get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
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

    def _slice(self, start: int, count: int | None) -> tuple[np.ndarray, slice]:
        """The whole groups that hold the tokens, and where the tokens are in them."""
        stop = self.tokens if count is None else start + count
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        first, last = start // GROUP, -(-stop // GROUP)
        packed = self._bytes[first * self.num_bits : last * self.num_bits]
        return packed, slice(start - first * GROUP, stop - first * GROUP)


class Sequences:
    """Shards cut into sequences of L tokens, numbered through; what is left at the end of a shard is not used."""

    def __init__(self, paths: Sequence[str], length: int) -> None:
        self.shards = [Shard(path) for path in paths]
        self.length = length
        self.per_shard = np.array([shard.tokens // length for shard in self.shards], dtype=np.int64)
        self.unused_tokens = int(sum(shard.tokens % length for shard in self.shards))
        self._first = np.concatenate([[0], np.cumsum(self.per_shard)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, first token in it) of a sequence."""
        assert 0 <= index < len(self), (index, len(self))
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        return shard, int(index - self._first[shard]) * self.length

    def ids(self, index: int) -> np.ndarray:
        """uint32 [L]."""
        shard, start = self.locate(index)
        return self.shards[shard].ids(start, self.length)
