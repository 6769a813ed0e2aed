"""From C to the tokens of a block, for both heads."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlm.config import sampler as options
from bitlm.diffusion.commitment import Commitment
from bitlm.diffusion.descent import Descent, RealCodes
from bitlm.diffusion.noise import sample_noise, token_uniform
from bitlm.diffusion.sampler import Sampled, Sampler
from bitlm.diffusion.schedule import Schedule, noise_levels
from bitlm.generation.denoiser import HeadDenoiser, sample_as_graph
from bitlm.generation.kept import Kept
from bitlm.generation.options import Sampling
from bitlm.generation.protocol import GenerativeConfig, GenerativeModel


class Realized(NamedTuple):
    """``ids`` [r, m] of the block, and for each row ``calls``, ``saved`` and ``states`` as in ``BlockStep``."""

    ids: Tensor
    calls: list[int]
    saved: list[int]
    states: list[Tensor] | None = None


_CONSTANTS = Kept(limit=2)

Realize = Callable[[Tensor, list[int], int], Realized]
"""(C [r, m, D], the example ids of its rows, the block's number) → its tokens."""


def realizer(model: GenerativeModel, sampling: Sampling) -> Realize:
    """To be made and used under ``torch.inference_mode``."""
    make = _diffusion_realizer if model.config.head == "diffusion" else _token_realizer
    return make(model, sampling)


def make_sampler(config: GenerativeConfig, sampling: Sampling, device: torch.device) -> Sampler:
    """The sampler of a diffusion head, with its tables on the device."""
    scale, form = options.guidance(sampling)
    if sampling.sampler == "commit":
        return Commitment(
            config.block_size, sampling.order, sampling.slots_per_call, sampling.threshold, sampling.temperature, scale
        )
    grid = {"stagger": sampling.stagger, "grid": sampling.time_grid, "shift": sampling.time_shift}
    levels = noise_levels(sampling.num_steps, config.block_size, **grid)
    interval = None if scale == 1 else (sampling.guidance_low, sampling.guidance_high)
    schedule = Schedule.of(levels, device, interval)
    return Descent(schedule, RealCodes(config.vocab_size, sampling.void), scale, form, sampling.solver)


def _diffusion_realizer(model: GenerativeModel, sampling: Sampling) -> Realize:
    m, B, device = model.config.block_size, model.config.num_bits, model.device
    sampler = make_sampler(model.config, sampling, device)
    levels = sampler.levels.to(device)
    constants = _constants(model, sampler, levels)

    def realize(context_rmD: Tensor, keys: list[int], block: int) -> Realized:
        if constants.ends is None or sampling.trace:
            noise_rmB = torch.stack([sample_noise(sampling.seed, key, block, m, B) for key in keys]).to(device)
        else:  # a walk is told nothing of pure noise
            noise_rmB = torch.zeros(len(keys), m, B, device=device)
        uniform_rm = None
        if sampler.draws:
            positions = range(block * m, block * m + m)
            numbers = [[token_uniform(sampling.seed, key, position) for position in positions] for key in keys]
            uniform_rm = torch.tensor(numbers, dtype=torch.float64, device=device)
        denoiser = HeadDenoiser(
            head=model.head,
            levels=levels,
            constants=constants,
            block=model.head.prepare_sampling(context_rmD, constants),
            two_branches=sampler.guided,
            compiled=sampling.compile,
        )
        sampled = _sample(sampler, denoiser, noise_rmB, uniform_rm, sampling)
        calls = sampled.calls.tolist()
        saved = [sampler.max_calls - each for each in calls]
        states = None if sampled.states is None else [state.cpu() for state in sampled.states]
        return Realized(sampled.ids, calls, saved, states)

    return realize


def _constants(model: GenerativeModel, sampler: Sampler, levels: Tensor) -> Any:
    if sampler.walks and model.head.keeps_slots:
        key, make = None, partial(model.walk_constants, sampler.guided)
    else:
        key = tuple(levels.tolist())
        of_slots = levels[:, None, None].expand(-1, 1, model.config.block_size)
        make = partial(model.sampling_constants, of_slots, sampler.guided)
    return _CONSTANTS.get(model, (key, sampler.guided), make)


def _sample(
    sampler: Sampler, denoiser: HeadDenoiser, noise_rmB: Tensor, uniform_rm: Tensor | None, sampling: Sampling
) -> Sampled:
    if sampling.compile and noise_rmB.is_cuda and sampler.fixed and not sampling.trace:
        return sample_as_graph(sampler, denoiser, noise_rmB, uniform_rm)
    return sampler(denoiser, noise_rmB, uniform_rm, trace=sampling.trace)


def _token_realizer(model: GenerativeModel, sampling: Sampling) -> Realize:
    def realize(context_r1D: Tensor, keys: list[int], block: int) -> Realized:
        logits_rV = model.token_logits(context_r1D)[:, 0]
        calls, saved = [1] * len(keys), [0] * len(keys)
        if sampling.temperature == 0:
            return Realized(logits_rV.argmax(-1, keepdim=True), calls, saved)
        cumulative_rV = (logits_rV.double() / sampling.temperature).softmax(-1).cumsum(-1)
        uniform_r1 = cumulative_rV.new_tensor([[token_uniform(sampling.seed, key, block)] for key in keys])
        ids_r1 = torch.searchsorted(cumulative_rV, uniform_r1 * cumulative_rV[:, -1:], right=True)
        return Realized(ids_r1, calls, saved)

    return realize
