"""The interface between training and its data: pure functions of a position, the same for any number of ranks.

Batches for training are made in a thread of their own (``bitlm.data.reading.prefetch``), so ``train`` and
``validation`` may be at work at the same time.
"""

from collections.abc import Sequence
from typing import Protocol

from bitlm.batch import Batch


class Batches(Protocol):
    validation_count: int  # sequences in the validation split
    bytes_per_token: float | None  # UTF-8 bytes of the validation text per token; None if only a part carries loss

    def train(self, positions: range) -> Batch:
        """The rows at these positions of the endless training order (position p is in epoch p // rows)."""
        ...

    def validation(self, indices: Sequence[int]) -> Batch:
        """The rows with these indices of the validation split."""
        ...

    def close(self) -> None:
        """Release files; called when the training ends, also by an exception."""
        ...
