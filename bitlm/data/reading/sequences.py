"""Shards cut into sequences of L tokens, numbered across shards; the rest at the end of a shard is not used."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from bitlm import packing
from bitlm.data.reading.open_shards import OpenShards
from bitlm.data.shards.format import GROUP


class Sequences:
    def __init__(self, shards: OpenShards, length: int) -> None:
        """``length``: L, a multiple of 8."""
        assert length % GROUP == 0, length
        self.shards, self.length = shards, length
        tokens = np.array(shards.tokens, dtype=np.int64)
        self.per_shard = tokens // length
        self.unused_tokens = int((tokens % length).sum())
        self._first = np.cumsum(self.per_shard) - self.per_shard

    def __len__(self) -> int:
        return int(self.per_shard.sum())

    def locate(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard numbers, rows in them) of sequences, int64 [n] each; row r begins at token r · L of its shard."""
        sequences = np.asarray(indices, dtype=np.int64)
        assert len(sequences) == 0 or 0 <= sequences.min() <= sequences.max() < len(self), (sequences, len(self))
        numbers = np.searchsorted(self._first, sequences, side="right") - 1
        return numbers, sequences - self._first[numbers]

    def ids(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [n, L]; the packed rows are gathered shard by shard, then unpacked together."""
        numbers, rows = self.locate(indices)
        order = np.argsort(numbers, kind="stable")
        packed = np.empty((len(rows), self.length * self.shards.num_bits // GROUP), dtype=np.uint8)
        end = 0
        for number, of_shard in groupby(numbers[order].tolist()):
            first, end = end, end + sum(1 for _ in of_shard)
            with self.shards.shard(number) as shard:
                np.take(shard.rows(self.length), rows[order[first:end]], axis=0, out=packed[first:end], mode="clip")
        ids = np.empty((len(rows), self.length), dtype=np.int64)
        ids[order] = packing.unpack(packed.reshape(-1), self.shards.num_bits).reshape(ids.shape)
        return ids
