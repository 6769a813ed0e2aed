"""The diffusion head as the sampler's denoiser: as it is, compiled, and on a GPU recorded as one CUDA graph per block.

A graph replays every kernel of all calls with one launch: the kernels of a small head over a few blocks are shorter
than the time the host takes to launch them. It stands for one number of blocks, so batches are filled up to the next
power of two.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bitlm.diffusion.posterior import Posterior
from bitlm.diffusion.sampler import Sampled, Sampler, Walk
from bitlm.generation.kept import Kept
from bitlm.generation.protocol import BlockTensors

_GRAPHS = Kept()


@dataclass(frozen=True)
class HeadDenoiser:
    """The head as a ``Denoiser``.

    block: what the head knows of n blocks; if ``two_branches`` of 2n, the conditional ones first, then the null ones:
        both branches are one call of the head.
    levels, constants: the sampler's noise levels [S], ascending, and the head's constants for these.
    """

    head: nn.Module
    levels: Tensor
    constants: Any
    block: BlockTensors
    two_branches: bool
    compiled: bool = False

    def __call__(self, noisy_nmB: Tensor, t: Tensor, guided: bool, estimate: Tensor | None = None) -> Posterior:
        block, n = self.block, len(noisy_nmB)
        told = ()
        if self.head.self_conditioning and estimate is not None:
            # In training no estimate lies outside [-1, 1], as a guided one may. Both branches are told the same.
            told = (estimate.clamp(-1, 1).repeat(2 if guided else 1, 1, 1),)
        if guided:
            noisy_nmB, t = torch.cat([noisy_nmB, noisy_nmB]), t if len(t) == 1 else torch.cat([t, t])
        elif self.two_branches:
            block = block.map(lambda tensor: tensor[:n])
        slots = torch.arange(t.shape[1], device=t.device)
        time = self.constants.times[torch.searchsorted(self.levels, t), 0, slots]
        if not self.compiled:
            return self.head(noisy_nmB, t, self.constants, block, time, *told)
        _mark_blocks(noisy_nmB, t, time, *told, *block.tensors().values())
        return CompiledPosterior(_compiled_head()(self.head, noisy_nmB, t, self.constants, block, time, *told))

    def walk(self, guided: bool) -> Walk | None:
        """Where the constants are those of a walk."""
        return None if self.constants.ends is None else self.head.walk(self.constants, self.block, guided)

    def keep(self, rows: Tensor) -> "HeadDenoiser":
        """For the blocks at these places alone."""
        if self.two_branches:
            rows = torch.cat([rows, rows + len(self.block.condition) // 2])
        return replace(self, block=self.block.select(rows))


@dataclass(frozen=True)
class CompiledPosterior:
    """A posterior whose answers are computed by compiled code."""

    plain: Posterior

    def log_odds(self) -> Tensor:
        return self._ask("log_odds")

    def mode(self) -> Tensor:
        return self._ask("mode")

    def best(self) -> tuple[Tensor, Tensor]:
        return self._ask("best")

    def sample(self, uniform_ns: Tensor, temperature: float = 1.0) -> Tensor:
        return self._ask("sample", uniform_ns, temperature)

    def log_prob(self, ids_ns: Tensor) -> Tensor:
        return self._ask("log_prob", ids_ns)

    def guided(self, scale: float) -> "CompiledPosterior":
        return CompiledPosterior(self.plain.guided(scale))

    def _ask(self, name: str, *given: Any) -> Any:
        _mark_blocks(*(value for value in (*vars(self.plain).values(), *given) if isinstance(value, Tensor)))
        return _compiled_answer()(self.plain, name, *given)


def _mark_blocks(*tensors: Tensor) -> None:
    """One compilation for every number of blocks from 2 on: it changes as rows end."""
    for tensor in tensors:
        if len(tensor) > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


@cache
def _compiled_head() -> Callable[..., Posterior]:
    """Made when first asked for: to load the compiler takes seconds, which every process would pay."""

    @torch.compile
    def call(
        head: nn.Module, noisy: Tensor, t: Tensor, constants: Any, block: BlockTensors, time: Tensor, *told: Tensor
    ) -> Posterior:
        return head(noisy, t, constants, block, time, *told)

    return call


@cache
def _compiled_answer() -> Callable[..., Any]:
    @torch.compile
    def answer(posterior: Posterior, name: str, *given: Any) -> Any:
        return getattr(posterior, name)(*given)

    return answer


class GraphedBlock:
    """A sampler of ``fixed`` calls for one number of blocks, recorded. It reads its inputs from buffers of its own."""

    def __init__(self, sampler: Sampler, denoiser: HeadDenoiser, noise_nmB: Tensor, uniform_nm: Tensor | None) -> None:
        self._noise = noise_nmB.clone()
        self._uniform = None if uniform_nm is None else uniform_nm.clone()
        # The graph reads the tensors of sampler and constants too, which are kept alive here.
        self._sampler, self._denoiser = sampler, replace(denoiser, block=denoiser.block.map(torch.clone))
        stream = torch.cuda.Stream(noise_nmB.device)
        stream.wait_stream(torch.cuda.current_stream(noise_nmB.device))
        with torch.cuda.stream(stream):  # compiles, and lets libraries make their handles and workspaces
            for _ in range(2):
                sampler(self._denoiser, self._noise, self._uniform)
        torch.cuda.current_stream(noise_nmB.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._sampled = sampler(self._denoiser, self._noise, self._uniform)

    def __call__(self, block: BlockTensors, noise_nmB: Tensor, uniform_nm: Tensor | None) -> Tensor:
        """A_1 [n, m, B] → ids [n, m]."""
        self._noise.copy_(noise_nmB)
        if self._uniform is not None:
            self._uniform.copy_(uniform_nm)
        buffers, tensors = self._denoiser.block.tensors(), block.tensors()
        for name, buffer in buffers.items():
            buffer.copy_(tensors[name])
        self._graph.replay()
        return self._sampled.ids.clone()


def sample_as_graph(sampler: Sampler, denoiser: HeadDenoiser, noise_nmB: Tensor, uniform_nm: Tensor | None) -> Sampled:
    """The sampler through the graph of this head, its settings and the next power of two of blocks.

    A graph holds the addresses of the head's parameters and copies of what was computed from them: the graphs of a head
    whose parameters were moved or changed are thrown away.
    """
    n = len(noise_nmB)
    filled = 1 << (n - 1).bit_length()
    if filled > n:
        index = torch.arange(filled, device=noise_nmB.device).clamp(max=n - 1)
        denoiser, noise_nmB = denoiser.keep(index), noise_nmB[index]
        uniform_nm = None if uniform_nm is None else uniform_nm[index]
    graph = _GRAPHS.get(
        denoiser.head, (filled, sampler), lambda: GraphedBlock(sampler, denoiser, noise_nmB, uniform_nm)
    )
    ids_nm = graph(denoiser.block, noise_nmB, uniform_nm)[:n]
    return Sampled(ids_nm, torch.full((n,), sampler.max_calls))
