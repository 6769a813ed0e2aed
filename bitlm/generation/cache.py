"""The backbone during generation: key/value cache, which cached entries are real, and C of the newest block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from bitlm.model.backbone import block_causal_mask, positions

if TYPE_CHECKING:
    from bitlm.model.model import BitLMForCausalLM


class BackboneState:
    """``context`` [r, m, D] is C of the newest block of the r rows still at work.

    Because the mask is block-causal in training too, the cached states are those of a full pass. Prompts are padded on
    the left to whole blocks of one length; padding is masked, and whole blocks of it do not count as positions.
    """

    context: Tensor

    def __init__(self, model: "BitLMForCausalLM", prompts: Sequence[Sequence[int]]) -> None:
        self._model, self._m = model, model.config.block_size
        self._cache = DynamicCache(config=model.model.config)
        m, longest = self._m, max(map(len, prompts))
        length = -(-longest // m) * m
        self._padding = [length - len(prompt) for prompt in prompts]
        tokens = torch.zeros(len(prompts), length, dtype=torch.long)
        visible = torch.ones(len(prompts), m + length, dtype=torch.bool)
        for row, (prompt, padding) in enumerate(zip(prompts, self._padding, strict=True)):
            tokens[row, padding:] = torch.tensor(prompt)
            visible[row, m : m + padding] = False  # behind the start block
        self._visible = visible.to(model.device)
        start = model.start_block.expand(len(prompts), -1, -1)
        embedded = torch.cat([start, model.embed(tokens.to(model.device))], dim=1)
        position_ids = positions(self._visible, m)
        self._next_position = position_ids[:, -1:] + 1  # [r, 1]
        mask = None
        if m > 1 or any(self._padding):  # for a purely causal pass the attention kernels need no mask
            mask = block_causal_mask(m + length, m, model.device) & self._visible[:, None, None, :]
        self._run(embedded, mask, position_ids, is_causal=mask is None)

    def advance(self, ids: Tensor, keep: list[int]) -> None:
        """Feed the newest tokens ids [r, m] of the rows ``keep``; the others leave the batch."""
        if len(keep) < len(ids):
            index = torch.tensor(keep, device=ids.device)
            ids, self._visible, self._next_position = ids[index], self._visible[index], self._next_position[index]
            self._padding = [self._padding[row] for row in keep]
            self._cache.batch_select_indices(index)
        self._visible = torch.cat([self._visible, self._visible.new_ones(len(ids), self._m)], dim=1)
        position_ids = self._next_position + torch.arange(self._m, device=ids.device)
        self._next_position = self._next_position + self._m
        # A query sees every real entry: all that is cached, and its own block.
        mask = self._visible[:, None, None, :].expand(-1, -1, self._m, -1) if any(self._padding) else None
        self._run(self._model.embed(ids), mask, position_ids, is_causal=False)

    def _run(self, embedded: Tensor, mask: Tensor | None, position_ids: Tensor, *, is_causal: bool) -> None:
        hidden = self._model.model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": mask},
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            is_causal=is_causal,
        ).last_hidden_state
        self.context = hidden[:, -self._m :]
