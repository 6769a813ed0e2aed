"""What a sampler is: from the noise of n blocks to their tokens by calls of a denoiser. There are two, ``Descent``
(descent.py) and ``Commitment`` (commitment.py)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitlm.diffusion.posterior import Posterior


class Denoiser(Protocol):
    """The head, told the contexts C of n blocks."""

    def __call__(self, noisy_nmB: Tensor, t: Tensor, guided: bool, estimate: Tensor | None = None) -> Posterior:
        """A_t and the noise level of every slot, t [n or 1, m] float32 → the posterior of the n blocks; if ``guided``
        of 2n, each given C first, and then each given the null condition. ``t`` are among ``Sampler.levels``.
        ``estimate`` is the sampler's last Â_0 [n, m, B], 0 at first, which a denoiser need not look at."""
        ...

    def walk(self, guided: bool) -> "Walk | None":
        """From the first slot of the blocks to the last, where the head keeps what it computed of clean slots."""
        ...

    def keep(self, rows: Tensor) -> "Denoiser":
        """For the blocks at the places [r] int64 of the present ones, in that order."""
        ...


class Walk(Protocol):
    """The head on its way along n blocks, all at the same slot."""

    def __call__(self, ids_nc: Tensor, count: int) -> Posterior:
        """The tokens of the c slots that landed since the last call [n, c] → the posterior of the ``count`` next slots,
        pure noise behind all clean ones; of 2n blocks if guided, as of a ``Denoiser``."""
        ...


@dataclass(frozen=True)
class Sampled:
    """``ids`` [n, m] int64; ``calls`` [n] int64 on the CPU, function evaluations of the head for each block, a guided
    call counting 2; ``states``, where asked for, one [steps+1, m, B] per block: A before the first step and after each,
    the signs of the last being the codes of the ids."""

    ids: Tensor
    calls: Tensor
    states: list[Tensor] | None = None


class Sampler(Protocol):
    """Samplers with the same settings are equal, and have the same hash."""

    @property
    def levels(self) -> Tensor:
        """Every noise level that its calls have, ascending, [S] float32."""
        ...

    @property
    def guided(self) -> bool:
        """Whether a call asks for the null condition."""
        ...

    @property
    def draws(self) -> bool:
        """Whether it needs uniform numbers beside the noise."""
        ...

    @property
    def max_calls(self) -> int:
        """What ``Sampled.calls`` is at most."""
        ...

    @property
    def walks(self) -> bool:
        """Whether it asks a denoiser for a walk."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether every block costs the same, so that the host need not look at values in between."""
        ...

    def __call__(
        self, denoiser: Denoiser, noise_nmB: Tensor, uniform_nm: Tensor | None = None, *, trace: bool = False
    ) -> Sampled:
        """A_1 float32 and, if it ``draws``, a number in [0, 1) for every slot, float64 → tokens."""
        ...


def commit_steps(states_SmB: Tensor) -> Tensor:
    """A block's states [S+1, m, B] → the step after which each bit kept its final sign, [m, B] int64; 0 where the noise
    had it from the start."""
    wrong_SmB = (states_SmB > 0) != (states_SmB[-1] > 0)
    step_S11 = torch.arange(1, len(states_SmB) + 1, device=states_SmB.device)[:, None, None]
    return (wrong_SmB * step_S11).amax(0)
