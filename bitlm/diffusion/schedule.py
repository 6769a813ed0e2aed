"""The noise levels of the descent: a grid of levels, slots that start one after another (stagger), and what follows
from them before anything is sampled. Levels of its own for each token, and staggering them, are known from Diffusion
Forcing (arXiv 2407.01392) and AR-Diffusion (arXiv 2305.09515).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bitlm.config.sampler import TimeGrid
from bitlm.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """A table of ``noise_levels`` as K steps use it. Two with the same ``levels`` and ``interval`` are equal.

    levels: its K+1 rows.
    interval: the noise levels between which to guide, both included; None: nowhere.
    t: [K, 1, m] float32, of each call.
    ratio: [K, m, 1], the next level divided by this one; 1 where a slot is already clean.
    extrapolation: [K, m, 1], h_k/(2·h_{k-1}) of DPM-Solver++(2M) with h the step of λ = log((1-t)/t); 0, which is
        first order, where one of them is infinite: at pure noise, at the landing, and while a slot stands still.
    guided: [K, m, 1], whether a slot moves in this step and is inside the interval.
    """

    levels: tuple[tuple[float, ...], ...]
    interval: tuple[float, float] | None
    t: Tensor = field(compare=False)
    ratio: Tensor = field(compare=False)
    extrapolation: Tensor = field(compare=False)
    guided: Tensor = field(compare=False)

    @classmethod
    def of(
        cls, levels: Tensor, device: torch.device | str = "cpu", interval: tuple[float, float] | None = None
    ) -> "Schedule":
        """From a table of ``noise_levels`` [K+1, m] float64."""
        t, following = levels[:-1], levels[1:]
        moves = following < t
        inside = torch.zeros_like(moves) if interval is None else moves & (interval[0] <= t) & (t <= interval[1])
        ratio = torch.where(t > 0, following / t, 1.0)
        rows = tuple(tuple(row) for row in levels.tolist())
        columns = (column[..., None].to(device) for column in (ratio.float(), _extrapolation(levels).float(), inside))
        return cls(rows, interval, t[:, None].float().to(device), *columns)

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    @property
    def calls(self) -> int:
        """Function evaluations (NFE) of the head for a block: 1 for each step, 2 for a guided one."""
        return sum(1 if self.guides(k) == "none" else 2 for k in range(self.num_steps))

    def guides(self, k: int) -> Literal["none", "some", "all"]:
        """Which of the slots that move in step k are guided."""
        moving = [t for t, following in zip(self.levels[k], self.levels[k + 1], strict=True) if following < t]
        inside = [t for t in moving if self.interval is not None and self.interval[0] <= t <= self.interval[1]]
        return "none" if not inside else "all" if len(inside) == len(moving) else "some"

    def has_clean_slot(self, k: int) -> bool:
        """Whether a slot is clean before step k."""
        return min(self.levels[k]) == 0

    def lands(self, k: int) -> bool:
        """Whether a slot becomes clean in step k."""
        return any(after == 0 < before for before, after in zip(self.levels[k], self.levels[k + 1], strict=True))


def noise_levels(
    num_steps: int, m: int, *, stagger: float = 0.0, grid: TimeGrid = "uniform", shift: float = 3.0
) -> Tensor:
    """The level of each slot before, between and after K = ``num_steps`` calls: [K+1, m] float64, from all 1 to all 0.

    Slot i starts its descent i·s later, s = ``stagger``, in units of one slot's descent: K steps share the clock of
    1 + (m-1)·s evenly. s = 0 gives every slot t_k = k/K, s = 1 realizes the slots one after the other. The ``shifted``
    grid maps each level to shift·t / (shift·t + 1 - t), which spends more (shift > 1) of the steps in high noise.

    Raises ConfigError for K < 1, s outside [0, 1], a shift that is not positive.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps = {num_steps}: K is at least 1")
    if not 0 <= stagger <= 1:
        raise ConfigError(f"stagger = {stagger}: choose 0 (all slots together) to 1 (one after the other)")
    if grid not in ("uniform", "shifted"):
        raise ConfigError(f"time_grid = {grid!r} is unknown; choose uniform or shifted")
    if not 0 < shift < np.inf:
        raise ConfigError(f"time_shift = {shift}: it is a positive number")
    remaining = np.arange(num_steps, -1, -1) / num_steps * (1 + (m - 1) * stagger)  # of the clock
    levels = (remaining[:, None] - stagger * np.arange(m - 1, -1, -1)).clip(0, 1)  # [K+1, m]
    levels[0] = 1  # rounding may have left a little less
    if grid == "shifted":
        levels = shift * levels / (shift * levels + (1 - levels))
    return torch.from_numpy(levels)


def _extrapolation(levels: Tensor) -> Tensor:
    """[K+1, m] → h_k/(2·h_{k-1}) [K, m], see ``Schedule``."""
    lam = torch.log1p(-levels) - levels.log()  # infinite at both ends
    h = lam.diff(dim=0)
    before = torch.cat([torch.full_like(h[:1], torch.inf), h[:-1]])
    finite = torch.isfinite(h) & torch.isfinite(before) & (before > 0)
    return torch.where(finite, h / (2 * before), 0.0)
