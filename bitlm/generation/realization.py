"""From C to the tokens of a block, for both heads."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitlm.codes import decode
from bitlm.diffusion.noise import sample_noise, token_uniform
from bitlm.diffusion.sampler import Denoised, RealCodes, Schedule, denoise_block, denoise_until_committed, noise_levels
from bitlm.generation.denoiser import HeadDenoiser, denoise_as_graph
from bitlm.generation.options import Sampling
from bitlm.generation.protocol import GenerativeModel


class Realized(NamedTuple):
    """``ids`` [r, m] of the block, and for each row ``calls``, ``saved`` and ``states`` as in ``BlockStep``."""

    ids: Tensor
    calls: list[int]
    saved: list[int]
    states: list[Tensor] | None = None


Realize = Callable[[Tensor, list[int], int], Realized]
"""(C [r, m, D], the example ids of its rows, the block's number) → its tokens."""


def realizer(model: GenerativeModel, sampling: Sampling) -> Realize:
    """To be made and used under ``torch.inference_mode``."""
    make = _diffusion_realizer if model.config.head == "diffusion" else _token_realizer
    return make(model, sampling)


def _diffusion_realizer(model: GenerativeModel, sampling: Sampling) -> Realize:
    m, B = model.config.block_size, model.config.num_bits
    grid = {"stagger": sampling.stagger, "grid": sampling.time_grid, "shift": sampling.time_shift}
    schedule = Schedule.of(noise_levels(sampling.num_steps, m, **grid), model.device)
    real_codes = RealCodes(model.config.vocab_size, sampling.void)
    constants = model.sampling_constants(schedule.t, guided=sampling.guidance_scale != 1)

    def realize(context_rmD: Tensor, keys: list[int], block: int) -> Realized:
        noise_rmB = torch.stack([sample_noise(sampling.seed, key, block, m, B) for key in keys]).to(context_rmD.device)
        denoiser = HeadDenoiser(
            head=model.head,
            schedule=schedule,
            constants=constants,
            block=model.head.prepare_sampling(context_rmD, constants),
            guidance_scale=sampling.guidance_scale,
            guidance_form=sampling.guidance_form,
            compiled=sampling.compile,
        )
        denoised = _denoise(denoiser, noise_rmB, real_codes, sampling)
        steps = denoised.steps.tolist()
        calls = [sampling.calls_per_step * each for each in steps]
        saved = [sampling.calls_per_step * (sampling.num_steps - each) for each in steps]
        states = None if denoised.states is None else [state.cpu() for state in denoised.states]
        return Realized(decode(denoised.values, model.config.vocab_size), calls, saved, states)

    return realize


def _denoise(denoiser: HeadDenoiser, noise_rmB: Tensor, real_codes: RealCodes, sampling: Sampling) -> Denoised:
    schedule, trace = denoiser.schedule, sampling.trace
    if sampling.commit_threshold is not None:
        threshold = sampling.commit_threshold
        return denoise_until_committed(denoiser, noise_rmB, schedule, real_codes, threshold, trace=trace)
    if sampling.compile and noise_rmB.is_cuda and not trace:
        return denoise_as_graph(denoiser, noise_rmB, real_codes)
    return denoise_block(denoiser, noise_rmB, schedule, real_codes, trace=trace)


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
