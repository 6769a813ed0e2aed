"""The loop of generation: one backbone pass with the key/value cache per block, then the head realizes the block.

A row's output depends on its prompt, its example id, the options and the seed alone: prompts are padded on the left by
masked entries, and noise belongs to (seed, example id, block).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from bitlm.errors import ConfigError
from bitlm.generation.cache import CachedContext
from bitlm.generation.options import Sampling, read_prompts
from bitlm.generation.protocol import GenerativeModel
from bitlm.generation.realization import Realized, realizer


@dataclass(frozen=True)
class BlockStep:
    """One generated block of each row still at work; all lists go by row.

    rows: indices of the prompts.
    ids: the new tokens, the end token and what follows it cut off.
    ended: whether the end token came.
    calls: the head's function evaluations, a guided call counting 2; 1 for the LM head.
    saved: how many fewer these are than the sampler's most, where ``threshold`` let slots land early.
    states: with ``trace``, A at every step, [steps+1, m, B] float32: the noise first, the realized codes last.
    """

    rows: list[int]
    ids: list[list[int]]
    ended: list[bool]
    calls: list[int]
    saved: list[int]
    states: list[Tensor] | None = None


@dataclass(frozen=True)
class GenerateOutput:
    """All lists go by prompt.

    ids: the generated tokens without the end token.
    ended: whether the text ended by itself.
    calls, saved: sums over the prompt's blocks, as in ``BlockStep``.
    blocks: how many were realized, each of which also cost one backbone pass.
    states: with ``trace``, those of each block, else none.
    """

    ids: list[list[int]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    states: list[list[Tensor]] = field(default_factory=list)


def generate(
    model: GenerativeModel, prompts: Any, example_ids: Sequence[int] | None, sampling: Sampling
) -> GenerateOutput:
    """``GenerationMixin.generate``."""
    prompts = read_prompts(model.config, prompts, sampling.max_new_tokens)
    n = len(prompts)
    output = GenerateOutput([[] for _ in prompts], [False] * n, [0] * n, [0] * n, [0] * n, [[] for _ in prompts])
    for step in stream(model, prompts, example_ids, sampling):
        for i, row in enumerate(step.rows):
            output.ids[row].extend(step.ids[i])
            output.ended[row] = step.ended[i]
            output.calls[row] += step.calls[i]
            output.saved[row] += step.saved[i]
            output.blocks[row] += 1
            if step.states is not None:
                output.states[row].append(step.states[i])
    return output


def stream(
    model: GenerativeModel, prompts: Any, example_ids: Sequence[int] | None, sampling: Sampling
) -> Iterator[BlockStep]:
    """``GenerationMixin.stream``."""
    prompts = read_prompts(model.config, prompts, sampling.max_new_tokens)
    if example_ids is not None and len(example_ids) != len(prompts):
        raise ConfigError(f"{len(example_ids)} example ids for {len(prompts)} prompts: give one for each")
    if not all(isinstance(key, Integral) for key in example_ids or ()):
        raise ConfigError(f"example_ids = {list(example_ids)!r}: expected whole numbers")
    sampling.check_model(model.config)
    return _blocks(model, prompts, list(range(len(prompts)) if example_ids is None else example_ids), sampling)


def _blocks(
    model: GenerativeModel, prompts: Sequence[Sequence[int]], keys: list[int], sampling: Sampling
) -> Iterator[BlockStep]:
    m, end_id = model.config.block_size, model.config.end_token_id
    rows = list(range(len(prompts)))
    state = realize = None
    for start in range(0, sampling.max_new_tokens, m):
        if not rows:
            return
        with torch.inference_mode():
            state = state or CachedContext(model, prompts)
            realize = realize or realizer(model, sampling)
            realized = realize(state.context, [keys[row] for row in rows], start // m)
            step = _cut(rows, realized, end_id, sampling.max_new_tokens - start)
            keep = [i for i, ended in enumerate(step.ended) if not ended]
            if keep and start + m < sampling.max_new_tokens:
                state.advance(realized.ids, keep)
            rows = [rows[i] for i in keep]
        yield step


def _cut(rows: list[int], realized: Realized, end_id: int, room: int) -> BlockStep:
    kept, ended = [], []
    for block in realized.ids.tolist():
        block = block[:room]
        ended.append(end_id in block)
        kept.append(block[: block.index(end_id)] if ended[-1] else block)
    return BlockStep(rows, kept, ended, realized.calls, realized.saved, realized.states)
