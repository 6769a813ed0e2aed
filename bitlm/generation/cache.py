"""The backbone during generation: key/value cache, which cached entries are real, and C of the newest block."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from bitlm.generation.protocol import GenerativeModel


class CachedContext:
    """``context`` [r, m, D] is C of the next block of the r rows still at work.

    Because the mask is block-causal in training too, the cached states are those of a full pass. Prompts are padded on
    the left to whole blocks of one length; padding is masked, and whole blocks of it do not count as positions. Equal
    prompts, from which several texts are sampled, are read once.
    """

    context: Tensor

    def __init__(self, model: GenerativeModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model, self._m = model, model.config.block_size
        self._cache = DynamicCache()
        places: dict[tuple[int, ...], int] = {}  # of the distinct prompts
        of_row = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
        m, longest = self._m, max(map(len, places))
        length = -(-longest // m) * m
        self._padding = [length - len(prompt) for prompt in places]
        tokens = torch.zeros(len(places), length, dtype=torch.long)
        visible = torch.ones(len(places), m + length, dtype=torch.bool)
        for place, (prompt, padding) in enumerate(zip(places, self._padding, strict=True)):
            tokens[place, padding:] = torch.tensor(prompt)
            visible[place, m : m + padding] = False  # behind the start block
        self._visible = visible.to(model.device)
        self._feed(tokens.to(model.device))
        if len(places) < len(prompts):
            index = torch.tensor(of_row, device=model.device)
            self._select(index, of_row)
            self.context = self.context[index]

    def advance(self, ids: Tensor, keep: list[int]) -> None:
        """Feed the newest tokens ids [r, m] of the rows ``keep``; the others leave the batch."""
        if len(keep) < len(ids):
            index = torch.tensor(keep, device=ids.device)
            ids = ids[index]
            self._select(index, keep)
        self._visible = torch.cat([self._visible, self._visible.new_ones(len(ids), self._m)], dim=1)
        self._feed(ids)

    def _select(self, index: Tensor, rows: list[int]) -> None:
        """Take these rows, in this order and as often as they are named; ``index`` holds the same on the device."""
        self._visible = self._visible[index]
        self._padding = [self._padding[row] for row in rows]
        self._cache.batch_select_indices(index)

    def _feed(self, ids: Tensor) -> None:
        visible = self._visible if any(self._padding) else None  # without padding the attention kernels need no mask
        self.context = self._model.next_context(ids, visible, self._cache)
