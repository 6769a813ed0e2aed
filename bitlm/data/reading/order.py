"""The order of the data: which sequence is at a position of the endless training order, by arithmetic alone.

Each epoch shuffles the shards, cuts their list into windows of a few shards, and takes the sequences of each window in
the order of a keyed permutation. Nothing depends on the number of readers, and any position can be computed directly.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

ROUNDS = 6


class Order:
    """The training order of all sequences, numbered across shards; ``per_shard`` counts those of each shard."""

    def __init__(self, per_shard: Sequence[int], seed: int, window_shards: int) -> None:
        self._sizes = np.asarray(per_shard, dtype=np.int64)
        self._first = np.cumsum(self._sizes) - self._sizes
        self._seed, self._window = seed, window_shards
        self._windows = -(-len(self._sizes) // window_shards)  # in an epoch
        self.total = int(self._sizes.sum())
        self._layout = lru_cache(maxsize=2)(self._compute_layout)

    def __call__(self, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(sequence indices, epochs), int64 [n] each, of positions ≥ 0; position p is in epoch p // total."""
        assert self.total > 0, "no sequence to order"
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), self.total)
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = self._in_epoch(epoch, offsets[here])
        return indices, epochs

    def windows(self, positions: Sequence[int]) -> Iterator[tuple[np.ndarray, list[int], list[int]]]:
        """The windows that ``positions`` fall in, in order. Of each: indices into ``positions`` of those in it, the
        numbers of its shards, and those of the next window's shards."""
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), self.total)
        numbers = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            numbers[here] = epoch * self._windows + self._window_of(epoch, offsets[here])
        for number in np.unique(numbers).tolist():
            yield np.flatnonzero(numbers == number), self._members(number), self._members(number + 1)

    def _members(self, number: int) -> list[int]:
        """Shards of a window that hold a sequence; windows are numbered across epochs."""
        epoch, window = divmod(number, self._windows)
        shards = self._layout(epoch)[0][window * self._window : (window + 1) * self._window]
        return shards[self._sizes[shards] > 0].tolist()

    def _compute_layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shards in this epoch's order, and the positions in the epoch where each starts and ends."""
        count = len(self._sizes)
        shards = permute(np.arange(count), count, f"{self._seed}/{epoch}")
        ends = np.cumsum(self._sizes[shards])
        return shards, ends - self._sizes[shards], ends

    def _window_of(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._layout(epoch)[2], offsets, side="right") // self._window

    def _in_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        shards, starts, ends = self._layout(epoch)
        windows = self._window_of(epoch, offsets)
        shuffled = np.empty_like(offsets)
        for window in np.unique(windows).tolist():
            here = windows == window
            start, end = starts[window * self._window], ends[min((window + 1) * self._window, len(ends)) - 1]
            shuffled[here] = start + permute(offsets[here] - start, int(end - start), f"{self._seed}/{epoch}/{window}")
        slots = np.searchsorted(ends, shuffled, side="right")
        return self._first[shards[slots]] + shuffled - starts[slots]


def permute(indices: np.ndarray, size: int, key: str) -> np.ndarray:
    """Images of ``indices`` (int64, 0 … size - 1 each) under the permutation of 0 … size - 1 that belongs to ``key``.

    A Feistel network on the least even number of bits that can hold ``size``; a value outside of the range goes through
    it again (cycle walking, Black and Rogaway 2002), at most 4 times on average.
    """
    assert len(indices) == 0 or (indices.min() >= 0 and indices.max() < size), (indices, size)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), dtype="<u8")
    values = np.asarray(indices).astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
