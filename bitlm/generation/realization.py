"""From C to the tokens of a block, for both heads."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bitlm.codes import decode
from bitlm.diffusion.noise import sample_noise, token_uniform
from bitlm.diffusion.sampler import Denoised, Schedule, denoise_block, denoise_until_committed, noise_levels
from bitlm.generation.denoiser import HeadDenoiser, Level, denoise_as_graph
from bitlm.generation.options import Sampling

if TYPE_CHECKING:
    from bitlm.model.model import BitLMForCausalLM


class Realized(NamedTuple):
    """``ids`` [r, m] of the block, and for each row what ``BlockStep`` says of ``calls``, ``saved`` and ``states``."""

    ids: Tensor
    calls: list[int]
    saved: list[int]
    states: list[Tensor] | None = None


Realize = Callable[[Tensor, list[int], int], Realized]
"""(C [r, m, D], the example ids of its rows, the block's number) → its tokens."""


def realizer(model: "BitLMForCausalLM", sampling: Sampling) -> Realize:
    """To be made and used under ``torch.inference_mode``."""
    make = _diffusion_realizer if model.config.head == "diffusion" else _token_realizer
    return make(model, sampling)


def _diffusion_realizer(model: "BitLMForCausalLM", sampling: Sampling) -> Realize:
    config, head, embedding = model.config, model.head, model.model.embed_tokens.weight
    levels = noise_levels(
        sampling.num_steps,
        config.block_size,
        stagger=sampling.stagger,
        grid=sampling.time_grid,
        shift=sampling.time_shift,
    )
    schedule = Schedule.of(levels, embedding.device).seen_as(lambda t: Level(t, head.embed_time(t)))
    constants = head.constants(embedding, guided=sampling.guidance_scale != 1)

    def realize(context: Tensor, keys: list[int], block: int) -> Realized:
        noise = [sample_noise(sampling.seed, key, block, config.block_size, config.num_bits) for key in keys]
        noise = torch.stack(noise).to(context.device)
        prepared = head.prepare_sampling(context, constants)
        denoiser = HeadDenoiser(head, prepared, sampling.guidance_scale, sampling.guidance_form, sampling.compile)
        made = _denoise(denoiser, noise, schedule, sampling)
        steps = made.steps.tolist()
        calls = [sampling.calls_per_step * each for each in steps]
        saved = [sampling.calls_per_step * (sampling.num_steps - each) for each in steps]
        states = None if made.states is None else [state.cpu() for state in made.states]
        return Realized(decode(made.values, config.vocab_size, sampling.void), calls, saved, states)

    return realize


def _denoise(denoiser: HeadDenoiser, noise: Tensor, schedule: Schedule, sampling: Sampling) -> Denoised:
    if sampling.commit_threshold is not None:
        return denoise_until_committed(denoiser, noise, schedule, sampling.commit_threshold, trace=sampling.trace)
    if sampling.compile and noise.is_cuda and not sampling.trace:
        return denoise_as_graph(denoiser, noise, schedule)
    return denoise_block(denoiser, noise, schedule, trace=sampling.trace)


def _token_realizer(model: "BitLMForCausalLM", sampling: Sampling) -> Realize:
    def realize(context: Tensor, keys: list[int], block: int) -> Realized:
        logits = model.head(context, model.model.embed_tokens.weight)[:, 0]  # [r, V]
        calls, saved = [1] * len(keys), [0] * len(keys)
        if sampling.temperature == 0:
            return Realized(logits.argmax(-1, keepdim=True), calls, saved)
        cumulative = (logits.double() / sampling.temperature).softmax(-1).cumsum(-1)
        uniform = cumulative.new_tensor([[token_uniform(sampling.seed, key, block)] for key in keys])
        return Realized(torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True), calls, saved)

    return realize
