"""Generation with both heads: one backbone pass with the key/value cache per block, then the head realizes the block.

``stream_blocks`` is the loop, ``generate`` collects it; both are also methods of the model (``stream``, ``generate``).
A row's output depends on its prompt, its example id, the options and the seed alone: prompts are padded on the left by
masked entries, and noise belongs to (seed, example id, block).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitlm.errors import ConfigError
from bitlm.generation.cache import BackboneState
from bitlm.generation.options import Sampling, check_prompts
from bitlm.generation.realization import Realized, realizer

if TYPE_CHECKING:
    from bitlm.model.model import BitLMForCausalLM


@dataclass(frozen=True)
class BlockStep:
    """One generated block of each row still at work; all lists go by row.

    rows: indices of the prompts.
    ids: the new tokens, the end token and what follows it cut off.
    ended: whether the end token came.
    calls: the head's function evaluations: K, 2K with guidance, fewer after an early commitment, 1 for the LM head.
    saved: evaluations that an early commitment spared.
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
    model: "BitLMForCausalLM",
    prompts: Sequence[Sequence[int]],
    *,
    example_ids: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    **options,
) -> GenerateOutput:
    """Continue each prompt until its end token or ``max_new_tokens``. Arguments and errors as in ``stream_blocks``."""
    n = len(prompts)
    output = GenerateOutput([[] for _ in prompts], [False] * n, [0] * n, [0] * n, [0] * n, [[] for _ in prompts])
    for step in stream_blocks(model, prompts, example_ids=example_ids, sampling=sampling, **options):
        for i, row in enumerate(step.rows):
            output.ids[row].extend(step.ids[i])
            output.ended[row] = step.ended[i]
            output.calls[row] += step.calls[i]
            output.saved[row] += step.saved[i]
            output.blocks[row] += 1
            if step.states is not None:
                output.states[row].append(step.states[i])
    return output


def stream_blocks(
    model: "BitLMForCausalLM",
    prompts: Sequence[Sequence[int]],
    *,
    example_ids: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    **options,
) -> Iterator[BlockStep]:
    """Continue all prompts in step and yield each block as soon as it is realized. Rows that ended leave the batch.

    ``prompts``: for each, at least one token id; lengths may differ. ``example_ids`` (by default the prompts' numbers)
    key the randomness of each. Options are the fields of ``Sampling``, given one by one or as ``sampling`` (single ones
    then replace its own): ``max_new_tokens`` is needed, K = ``num_steps`` = 15, ω = ``guidance_scale`` = 9, ….

    Raises ConfigError, before anything runs, for an option out of its range, an empty prompt, ids outside the
    vocabulary, a prompt for which the model has too few positions, a wrong number of example ids, or a trace of the LM
    head, which has no bits.
    """
    sampling = Sampling(**options) if sampling is None else replace(sampling, **options)
    check_prompts(model.config, prompts, sampling.max_new_tokens)
    if example_ids is not None and len(example_ids) != len(prompts):
        raise ConfigError(f"{len(example_ids)} example ids for {len(prompts)} prompts: give one for each")
    if sampling.trace and model.config.head == "lm":
        raise ConfigError("trace: the LM head realizes tokens at once, there are no bits to trace")
    return _blocks(model, prompts, list(range(len(prompts)) if example_ids is None else example_ids), sampling)


def _blocks(
    model: "BitLMForCausalLM", prompts: Sequence[Sequence[int]], keys: list[int], sampling: Sampling
) -> Iterator[BlockStep]:
    m, end_id = model.config.block_size, model.config.end_token_id
    rows = list(range(len(prompts)))
    state = realize = None
    for start in range(0, sampling.max_new_tokens, m):
        if not rows:
            return
        with torch.inference_mode():
            state = state or BackboneState(model, prompts)
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
