"""The diffusion head as the sampler's denoiser: as it is, compiled, and on a GPU recorded as one CUDA graph per block.

A graph replays every kernel of all K steps with one launch: the kernels of a small head over a few blocks are shorter
than the time the host takes to launch them. It stands for one number of blocks, so batches are filled up to the next
power of two.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bitlm.diffusion.loss import to_codes
from bitlm.diffusion.sampler import Denoised, GuidanceForm, Schedule, denoise_block, guide
from bitlm.model.head import DiffusionHead, Prepared

_GRAPHS: "WeakKeyDictionary[DiffusionHead, tuple[Hashable, dict[Hashable, GraphedBlock]]]" = WeakKeyDictionary()


class Level(NamedTuple):
    """A noise level t [1, m] and its ``time`` embedding [1, m, H], computed once for all blocks."""

    t: Tensor
    time: Tensor


@dataclass(frozen=True)
class HeadDenoiser:
    """(A_t [n, m, B], Level) → Â_0 [n, m, B], guided unless ω = 1.

    ``prepared`` holds n blocks, with guidance 2n, the conditional ones first, then the null ones: both branches are one
    call of the head.
    """

    head: DiffusionHead
    prepared: Prepared
    guidance_scale: float
    guidance_form: GuidanceForm
    compiled: bool = False

    def __call__(self, noisy: Tensor, level: Level) -> Tensor:
        if self.guidance_scale == 1:
            return to_codes(self._logits(noisy, level))
        conditional, null = self._logits(torch.cat([noisy, noisy]), level).chunk(2)
        return guide(conditional, null, self.guidance_scale, self.guidance_form)

    def _logits(self, noisy: Tensor, level: Level) -> Tensor:
        if not self.compiled:
            return self.head(noisy, level.t, self.prepared, level.time)
        if len(noisy) > 1:  # one compilation for every number of blocks: it changes as rows end
            for tensor in (noisy, *self.prepared.tensors()):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return _compiled_head()(self.head, noisy, level.t, self.prepared, level.time)

    def keep(self, rows: Tensor) -> "HeadDenoiser":
        """For the blocks at these places alone."""
        if self.guidance_scale != 1:
            rows = torch.cat([rows, rows + len(self.prepared.condition) // 2])
        return replace(self, prepared=self.prepared.index(rows))


@cache
def _compiled_head() -> Callable[[DiffusionHead, Tensor, Tensor, Prepared, Tensor], Tensor]:
    """Made when first asked for: to load the compiler takes seconds, which every process would pay."""

    @torch.compile
    def call(head: DiffusionHead, noisy: Tensor, t: Tensor, prepared: Prepared, time: Tensor) -> Tensor:
        return head(noisy, t, prepared, time)

    return call


class GraphedBlock:
    """``denoise_block`` for one number of blocks, recorded. It reads its inputs from buffers of its own."""

    def __init__(self, denoiser: HeadDenoiser, noise: Tensor, schedule: Schedule) -> None:
        self._noise, self._schedule = noise.clone(), schedule  # the graph reads the schedule's tensors too
        self._prepared = denoiser.prepared.map(torch.clone)
        denoiser = replace(denoiser, prepared=self._prepared)
        stream = torch.cuda.Stream(noise.device)
        stream.wait_stream(torch.cuda.current_stream(noise.device))
        with torch.cuda.stream(stream):  # compiles, and lets libraries make their handles and workspaces
            for _ in range(2):
                denoise_block(denoiser, self._noise, schedule)
        torch.cuda.current_stream(noise.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._values = denoise_block(denoiser, self._noise, schedule).values

    def __call__(self, prepared: Prepared, noise: Tensor) -> Tensor:
        """A_1 [n, m, B] → A_0 [n, m, B]."""
        self._noise.copy_(noise)
        for buffer, tensor in zip(self._prepared.tensors(), prepared.tensors(), strict=True):
            buffer.copy_(tensor)
        self._graph.replay()
        return self._values.clone()


def denoise_as_graph(denoiser: HeadDenoiser, noise: Tensor, schedule: Schedule) -> Denoised:
    """``denoise_block`` through the graph of this head, these settings and the next power of two of blocks.

    A graph holds the addresses of the head's parameters and copies of what was computed from them: the graphs of a head
    whose parameters were moved or changed are thrown away.
    """
    n = len(noise)
    filled = 1 << (n - 1).bit_length()
    if filled > n:
        index = torch.arange(filled, device=noise.device).clamp(max=n - 1)
        denoiser, noise = denoiser.keep(index), noise[index]
    parameters = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in denoiser.head.parameters())
    known, graphs = _GRAPHS.get(denoiser.head, (None, {}))
    if known != parameters:
        graphs = {}
        _GRAPHS[denoiser.head] = parameters, graphs
    key = filled, schedule.levels, denoiser.guidance_scale, denoiser.guidance_form
    if key not in graphs:
        graphs[key] = GraphedBlock(denoiser, noise, schedule)
    values = graphs[key](denoiser.prepared, noise)[:n]
    return Denoised(values, torch.full((n,), schedule.num_steps))
