"""Shards cut into sequences of L tokens, numbered through; what is left at the end of a shard is not used."""

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
        """(shards, places in them) of sequences, int64 [n] each; the sequence begins at token place · L."""
        numbers = np.asarray(indices, dtype=np.int64)
        assert len(numbers) == 0 or 0 <= numbers.min() <= numbers.max() < len(self), (numbers, len(self))
        shards = np.searchsorted(self._first, numbers, side="right") - 1
        return shards, numbers - self._first[shards]

    def ids(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [n, L]; the packed rows are gathered shard by shard, and unpacked all at once."""
        shards, places = self.locate(indices)
        order = np.argsort(shards, kind="stable")
        packed = np.empty((len(shards), self.length * self.shards.num_bits // GROUP), dtype=np.uint8)
        end = 0
        for number, same in groupby(shards[order].tolist()):
            first, end = end, end + sum(1 for _ in same)
            with self.shards.shard(number) as shard:
                np.take(shard.rows(self.length), places[order[first:end]], axis=0, out=packed[first:end], mode="clip")
        ids = np.empty((len(shards), self.length), dtype=np.int64)
        ids[order] = packing.unpack(packed.reshape(-1), self.shards.num_bits).reshape(ids.shape)
        return ids
