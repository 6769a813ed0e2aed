"""Generation with both heads: one backbone pass with the key/value cache per block, then the head realizes the block.

``stream_blocks`` is the loop, ``generate`` collects it. A row's output depends on its prompt, its example id and the
seed alone: prompts are padded on the left by masked entries, and noise belongs to (seed, example id, block).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from bitlm.codes import decode
from bitlm.diffusion.loss import to_codes
from bitlm.diffusion.noise import sample_noise, token_uniform
from bitlm.diffusion.sampler import calls_per_block, denoise_block, guided
from bitlm.errors import ConfigError
from bitlm.model.backbone import block_causal_mask, positions

if TYPE_CHECKING:
    from bitlm.model.model import BitLMForCausalLM


@dataclass(frozen=True)
class BlockStep:
    """One generated block. ``rows`` are the indices of the prompts still at work, ``ids[i]`` the new tokens of
    ``rows[i]`` (the end token and what follows it cut off), ``ended[i]`` whether the end token came, ``calls`` the
    head's evaluations for each row in this block."""

    rows: list[int]
    ids: list[list[int]]
    ended: list[bool]
    calls: int


@dataclass(frozen=True)
class GenerateOutput:
    """For each prompt: the generated ``ids`` without the end token, whether it ``ended`` by itself, the head's function
    evaluations (``calls``: K per block, 2K with guidance, 1 per token for the LM head) and the ``blocks`` realized,
    each of which also cost one backbone pass."""

    ids: list[list[int]]
    ended: list[bool]
    calls: list[int]
    blocks: list[int]


Realize = Callable[[Tensor, list[int], int], Tensor]
"""(C [r, m, D], the example ids of its rows, the block's number) → token ids [r, m]."""


def generate(model: "BitLMForCausalLM", prompts: Sequence[Sequence[int]], **options) -> GenerateOutput:
    """Continue each prompt (a list of at least one token id) until its end token or ``max_new_tokens``.

    Options: those of ``stream_blocks``. Raises ConfigError for an empty prompt, ids outside the vocabulary, a sequence
    longer than the model's positions, K < 1, a negative guidance scale or temperature, a wrong number of example ids.
    """
    output = GenerateOutput([[] for _ in prompts], [False] * len(prompts), [0] * len(prompts), [0] * len(prompts))
    for step in stream_blocks(model, prompts, **options):
        for row, ids, ended in zip(step.rows, step.ids, step.ended, strict=True):
            output.ids[row].extend(ids)
            output.ended[row] = ended
            output.calls[row] += step.calls
            output.blocks[row] += 1
    return output


def stream_blocks(
    model: "BitLMForCausalLM",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_steps: int = 15,
    guidance_scale: float = 9.0,
    temperature: float = 0.0,
    void: Literal["clamp", "nearest"] = "clamp",
    seed: int = 0,
    example_ids: Sequence[int] | None = None,
) -> Iterator[BlockStep]:
    """Yield the blocks of all prompts in step. Rows that have ended leave the batch.

    Diffusion head: K = ``num_steps``, ω = ``guidance_scale``, ``void`` as in ``bitlm.codes.decode``. LM head: greedy at
    ``temperature`` 0, else one keyed draw per token. ``example_ids`` (by default the row numbers) key the randomness.
    Errors as in ``generate``; they are raised when the iteration starts.
    """
    _check(model, prompts, max_new_tokens, num_steps, guidance_scale, temperature, example_ids)
    if model.config.head == "diffusion":
        realize = _diffusion_realizer(model, num_steps, guidance_scale, void, seed)
        calls = calls_per_block(num_steps, guidance_scale)
    else:
        realize, calls = _token_realizer(model, temperature, seed), 1
    m = model.config.block_size
    keys = list(range(len(prompts)) if example_ids is None else example_ids)
    rows = list(range(len(prompts)))
    state = None
    for block in range(-(-max_new_tokens // m)):
        if not rows:
            return
        with torch.inference_mode():
            state = state or _BackboneState(model, prompts)
            ids = realize(state.context, [keys[row] for row in rows], block)  # [r, m]
            step = _cut(rows, ids.tolist(), model.config.end_token_id, max_new_tokens - block * m, calls)
            keep = [i for i, ended in enumerate(step.ended) if not ended]
            if keep and (block + 1) * m < max_new_tokens:
                state.advance(ids, keep)
            rows = [rows[i] for i in keep]
        yield step


def _cut(rows: list[int], ids: list[list[int]], end_id: int, room: int, calls: int) -> BlockStep:
    kept, ended = [], []
    for block in ids:
        block = block[:room]
        ended.append(end_id in block)
        kept.append(block[: block.index(end_id)] if ended[-1] else block)
    return BlockStep(rows, kept, ended, calls)


class _BackboneState:
    """The backbone's state: key/value cache, which cached entries are real, and C of the newest block."""

    def __init__(self, model: "BitLMForCausalLM", prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.m = m = model.config.block_size
        length = -(-max(map(len, prompts)) // m) * m
        tokens = torch.zeros(len(prompts), length, dtype=torch.long)
        visible = torch.zeros(len(prompts), m + length, dtype=torch.bool)
        visible[:, :m] = True  # the start block
        for row, prompt in enumerate(prompts):
            tokens[row, length - len(prompt) :] = torch.tensor(prompt)
            visible[row, m + length - len(prompt) :] = True
        self.visible = visible.to(model.device)
        self.cache = DynamicCache(config=model.model.config)
        embedded = model.model.embed_tokens(tokens.to(model.device))
        start = model.start_block.expand(len(prompts), -1, -1)
        mask = block_causal_mask(m + length, m, model.device) & self.visible[:, None, None, :]
        position_ids = positions(self.visible, m)
        self.next_position = position_ids[:, -1:] + 1  # [r, 1]
        self._run(torch.cat([start, embedded], dim=1), mask, position_ids)

    def advance(self, ids: Tensor, keep: list[int]) -> None:
        """Feed the block ids [r, m] of the rows to keep; the others leave. A query sees all real entries."""
        if len(keep) < len(ids):
            index = torch.tensor(keep, device=ids.device)
            ids, self.visible, self.next_position = ids[index], self.visible[index], self.next_position[index]
            self.cache.batch_select_indices(index)
        self.visible = torch.cat([self.visible, self.visible.new_ones(len(ids), self.m)], dim=1)
        position_ids = self.next_position + torch.arange(self.m, device=ids.device)
        self.next_position = self.next_position + self.m
        mask = self.visible[:, None, None, :].expand(-1, -1, self.m, -1)
        self._run(self.model.model.embed_tokens(ids), mask, position_ids)

    def _run(self, embedded: Tensor, mask: Tensor, position_ids: Tensor) -> None:
        hidden = self.model.model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": mask},
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.context = hidden[:, -self.m :]  # C [r, m, D]


def _diffusion_realizer(
    model: "BitLMForCausalLM", num_steps: int, guidance_scale: float, void: Literal["clamp", "nearest"], seed: int
) -> Realize:
    config, head = model.config, model.head

    def realize(context: Tensor, keys: list[int], block: int) -> Tensor:
        noise = torch.stack([sample_noise(seed, key, block, config.block_size, config.num_bits) for key in keys])
        condition = head.condition(context)  # [r, m, H]
        if guidance_scale != 1:
            condition = torch.cat([condition, head.null_condition().expand_as(condition)])

        def denoiser(noisy: Tensor, t: Tensor) -> Tensor:
            return to_codes(head(noisy, t, condition))

        if guidance_scale != 1:
            denoiser = guided(denoiser, guidance_scale)
        return decode(denoise_block(denoiser, noise.to(context.device), num_steps), config.vocab_size, void)

    return realize


def _token_realizer(model: "BitLMForCausalLM", temperature: float, seed: int) -> Realize:
    def realize(context: Tensor, keys: list[int], block: int) -> Tensor:
        logits = model.head(context, model.model.embed_tokens.weight)[:, 0]  # [r, V]
        if temperature == 0:
            return logits.argmax(-1, keepdim=True)
        cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
        uniform = cumulative.new_tensor([[token_uniform(seed, key, block)] for key in keys])
        return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)

    return realize


def _check(
    model: "BitLMForCausalLM",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    num_steps: int,
    guidance_scale: float,
    temperature: float,
    example_ids: Sequence[int] | None,
) -> None:
    config = model.config
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ConfigError(f"prompt {row} is empty: give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
        if wrong is not None:
            known = f"0 to {config.vocab_size - 1}"
            raise ConfigError(f"prompt {row}: token id {wrong} is outside the vocabulary ({known})")
        room = config.max_position_embeddings - 2 * config.block_size - max_new_tokens
        if len(prompt) > room:
            raise ConfigError(f"prompt {row}: {len(prompt)} tokens; beside {max_new_tokens} new ones only {room} fit")
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens = {max_new_tokens}: at least 1 is needed")
    if num_steps < 1:
        raise ConfigError(f"num_steps = {num_steps}: K is at least 1")
    if not guidance_scale >= 0:
        raise ConfigError(f"guidance_scale = {guidance_scale}: ω is 0 or more")
    if not temperature >= 0:
        raise ConfigError(f"temperature = {temperature}: it is 0 (greedy) or more")
    if example_ids is not None and len(example_ids) != len(prompts):
        raise ConfigError(f"{len(example_ids)} example ids for {len(prompts)} prompts: give one for each")
