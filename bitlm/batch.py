"""What the model is trained and validated on."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """ids [b, L]; ``attention_mask`` [b, L] 0 on padding; ``loss_tokens`` [b, L] True where loss is taken (None: all);
    the ``indices`` and ``epochs`` of the rows, to which their noise belongs."""

    input_ids: Tensor
    attention_mask: Tensor | None
    loss_tokens: Tensor | None
    indices: list[int]
    epochs: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def tokens(self) -> int:
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def split(self, rows: int | None) -> "Iterator[Batch]":
        """Micro-batches of at most ``rows`` rows."""
        rows = rows or len(self)
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            mask = None if self.attention_mask is None else self.attention_mask[part]
            in_loss = None if self.loss_tokens is None else self.loss_tokens[part]
            yield Batch(self.input_ids[part], mask, in_loss, self.indices[part], self.epochs[part])

    def to(self, device: torch.device) -> "Batch":
        moved = (
            None if tensor is None else tensor.to(device, non_blocking=True)
            for tensor in (self.input_ids, self.attention_mask, self.loss_tokens)
        )
        return Batch(*moved, self.indices, self.epochs)
