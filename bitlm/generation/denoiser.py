"""The diffusion head as the sampler's denoiser: as it is, compiled, and on a GPU recorded as one CUDA graph per block.

A graph replays every kernel of all K steps with one launch: the kernels of a small head over a few blocks are shorter
than the time the host takes to launch them. It stands for one number of blocks, so batches are filled up to the next
power of two.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bitlm.diffusion.loss import to_codes
from bitlm.diffusion.sampler import Denoised, GuidanceForm, RealCodes, Schedule, denoise_block, guide
from bitlm.generation.protocol import BlockTensors

_GRAPHS: "WeakKeyDictionary[nn.Module, tuple[Hashable, dict[Hashable, GraphedBlock]]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class HeadDenoiser:
    """(A_t [n, m, B], step k) → Â_0 [n, m, B], guided unless ω = 1.

    ``block`` holds n blocks, with guidance 2n, the conditional ones first, then the null ones: both branches are one
    call of the head.
    """

    head: nn.Module
    schedule: Schedule
    constants: Any
    block: BlockTensors
    guidance_scale: float
    guidance_form: GuidanceForm
    compiled: bool = False

    def __call__(self, noisy_nmB: Tensor, k: int) -> Tensor:
        if self.guidance_scale == 1:
            return to_codes(self._log_odds(noisy_nmB, k))
        conditional, null = self._log_odds(torch.cat([noisy_nmB, noisy_nmB]), k).chunk(2)
        return guide(conditional, null, self.guidance_scale, self.guidance_form)

    def _log_odds(self, noisy_nmB: Tensor, k: int) -> Tensor:
        t, time = self.schedule.t[k], self.constants.times[k]
        if not self.compiled:
            return self.head(noisy_nmB, t, self.constants, self.block, time).log_odds()
        if len(noisy_nmB) > 1:  # one compilation for every number of blocks: it changes as rows end
            for tensor in (noisy_nmB, *self.block.tensors().values()):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return _compiled_head()(self.head, noisy_nmB, t, self.constants, self.block, time)

    def keep(self, rows: Tensor) -> "HeadDenoiser":
        """For the blocks at these places alone."""
        if self.guidance_scale != 1:
            rows = torch.cat([rows, rows + len(self.block.condition) // 2])
        return replace(self, block=self.block.select(rows))


@cache
def _compiled_head() -> Callable[..., Tensor]:
    """Made when first asked for: to load the compiler takes seconds, which every process would pay."""

    @torch.compile
    def call(head: nn.Module, noisy: Tensor, t: Tensor, constants: Any, block: BlockTensors, time: Tensor) -> Tensor:
        return head(noisy, t, constants, block, time).log_odds()

    return call


class GraphedBlock:
    """``denoise_block`` for one number of blocks, recorded. It reads its inputs from buffers of its own."""

    def __init__(self, denoiser: HeadDenoiser, noise_nmB: Tensor, real_codes: RealCodes) -> None:
        self._noise = noise_nmB.clone()
        # The graph reads the tensors of the schedule and of the constants too, which the denoiser keeps alive.
        self._denoiser = replace(denoiser, block=denoiser.block.map(torch.clone))
        stream = torch.cuda.Stream(noise_nmB.device)
        stream.wait_stream(torch.cuda.current_stream(noise_nmB.device))
        with torch.cuda.stream(stream):  # compiles, and lets libraries make their handles and workspaces
            for _ in range(2):
                denoise_block(self._denoiser, self._noise, denoiser.schedule, real_codes)
        torch.cuda.current_stream(noise_nmB.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._values = denoise_block(self._denoiser, self._noise, denoiser.schedule, real_codes).values

    def __call__(self, block: BlockTensors, noise_nmB: Tensor) -> Tensor:
        """A_1 [n, m, B] → A_0 [n, m, B]."""
        self._noise.copy_(noise_nmB)
        buffers, tensors = self._denoiser.block.tensors(), block.tensors()
        for name, buffer in buffers.items():
            buffer.copy_(tensors[name])
        self._graph.replay()
        return self._values.clone()


def denoise_as_graph(denoiser: HeadDenoiser, noise_nmB: Tensor, real_codes: RealCodes) -> Denoised:
    """``denoise_block`` through the graph of this head, these settings and the next power of two of blocks.

    A graph holds the addresses of the head's parameters and copies of what was computed from them: the graphs of a head
    whose parameters were moved or changed are thrown away.
    """
    n, schedule = len(noise_nmB), denoiser.schedule
    filled = 1 << (n - 1).bit_length()
    if filled > n:
        index = torch.arange(filled, device=noise_nmB.device).clamp(max=n - 1)
        denoiser, noise_nmB = denoiser.keep(index), noise_nmB[index]
    parameters = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in denoiser.head.parameters())
    recorded_for, graphs = _GRAPHS.get(denoiser.head, (None, {}))
    if recorded_for != parameters:
        graphs = {}
        _GRAPHS[denoiser.head] = parameters, graphs
    key = filled, schedule.levels, denoiser.guidance_scale, denoiser.guidance_form, real_codes
    if key not in graphs:
        graphs[key] = GraphedBlock(denoiser, noise_nmB, real_codes)
    values = graphs[key](denoiser.block, noise_nmB)[:n]
    return Denoised(values, torch.full((n,), schedule.num_steps))
