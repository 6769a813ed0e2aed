"""From noise to codes in K steps: the noise levels, the update and the guidance of the article, and two of our own:
slots that start one after another (stagger), and blocks that end early once they are decided (adaptive commitment).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bitlm.codes import Void, decode, encode
from bitlm.diffusion.loss import to_codes
from bitlm.errors import ConfigError

TimeGrid = Literal["uniform", "shifted"]
GuidanceForm = Literal["prediction", "logit"]
Denoiser = Callable[[Tensor, int], Tensor]
"""(A_t [n, m, B], number k of the step, which stands for the levels ``Schedule.t[k]``) → Â_0 [n, m, B]."""


class RowDenoiser(Protocol):
    """A ``Denoiser`` that can be restricted to some of its rows, as adaptive commitment needs."""

    def __call__(self, noisy: Tensor, k: int) -> Tensor: ...

    def keep(self, rows: Tensor) -> "RowDenoiser":
        """For the rows [r] int64 of the current ones, in that order."""
        ...


@dataclass(frozen=True)
class RealCodes:
    """Where a slot lands: on the code of a real token, φ(φ⁻¹(A)). Raises as ``bitlm.codes.decode``."""

    vocab_size: int
    void: Void = "clamp"

    def __call__(self, values_nmB: Tensor) -> Tensor:
        """Any values → values of the same magnitude whose signs are the code of a real token.

        A zero, which has no sign, becomes ±1e-30.
        """
        ids = decode(values_nmB, self.vocab_size, self.void)
        return values_nmB.abs().clamp(min=1e-30) * encode(ids, values_nmB.shape[-1], check=False)


@dataclass(frozen=True)
class Schedule:
    """A table of ``noise_levels`` as K steps use it: ``t`` [K, 1, m] of each call, ``ratio`` [K, m, 1] the next level
    divided by this one (1 where a slot is already clean), ``levels`` the K+1 rows of the table themselves."""

    t: Tensor
    ratio: Tensor
    levels: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, levels: Tensor, device: torch.device | str = "cpu") -> "Schedule":
        """From a table of ``noise_levels`` [K+1, m]."""
        t, following = levels[:-1], levels[1:]
        ratio = torch.where(t > 0, following / t, 1.0)
        rows = tuple(tuple(row) for row in levels.tolist())
        return cls(t[:, None].float().to(device), ratio[..., None].float().to(device), rows)

    @property
    def num_steps(self) -> int:
        return len(self.t)

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


@dataclass(frozen=True)
class Denoised:
    """``values`` [n, m, B], whose signs are the codes; ``steps`` [n] int64, the steps made for each block; ``states``,
    where asked for, one [steps+1, m, B] per block: A before the first step and after each."""

    values: Tensor
    steps: Tensor
    states: list[Tensor] | None = None


def denoise_block(
    denoiser: Denoiser, noise_nmB: Tensor, schedule: Schedule, real_codes: RealCodes, *, trace: bool = False
) -> Denoised:
    """A_1 [n, m, B] → A_0 by exactly K calls of the denoiser.

    A_next = ratio·A_t + (1 - ratio)·Â_0 with ratio = t_next/t. A slot's last step lands on Â_0 itself; where its signs
    are a void corner, on the code of a real token.
    """
    current_nmB, states = noise_nmB, [noise_nmB]
    for k in range(schedule.num_steps):
        estimate_nmB = _estimate(denoiser, current_nmB, schedule, k)
        current_nmB = _update(estimate_nmB, current_nmB, schedule, k, real_codes)
        if trace:
            states.append(current_nmB)
    steps_n = torch.full((len(noise_nmB),), schedule.num_steps)
    return Denoised(current_nmB, steps_n, list(torch.stack(states, dim=1)) if trace else None)


def denoise_until_committed(
    denoiser: RowDenoiser,
    noise_nmB: Tensor,
    schedule: Schedule,
    real_codes: RealCodes,
    threshold: float,
    *,
    trace: bool = False,
) -> Denoised:
    """``denoise_block``, but a block leaves the batch with its Â_0 after the first call that decides it: every bit has
    the sign it had at the call before, and |Â_0| above ``threshold``. Bits of a clean slot are decided.

    At most K calls per block, and at least 2 (K, where K < 2).
    """
    final_nmB, steps_n = torch.empty_like(noise_nmB), torch.full((len(noise_nmB),), schedule.num_steps)
    states: list[list[Tensor]] = [[start] for start in noise_nmB] if trace else []
    rows_r = torch.arange(len(noise_nmB), device=noise_nmB.device)  # of the batch, still at work
    current_rmB, before_rmB = noise_nmB, None
    for k in range(schedule.num_steps):
        estimate_rmB = _estimate(denoiser, current_rmB, schedule, k)
        current_rmB = _update(estimate_rmB, current_rmB, schedule, k, real_codes)
        decided_r = torch.full((len(rows_r),), k == schedule.num_steps - 1, device=noise_nmB.device)
        if before_rmB is not None:
            decided_r |= _decided(estimate_rmB, before_rmB, schedule.t[k], threshold)
        current_rmB = torch.where(decided_r[:, None, None], real_codes(estimate_rmB), current_rmB)
        for row, state in zip(rows_r.tolist(), current_rmB, strict=True) if trace else ():
            states[row].append(state)
        before_rmB = estimate_rmB
        if decided_r.any():
            gone, left = rows_r[decided_r], (~decided_r).nonzero().flatten()
            final_nmB[gone], steps_n[gone.cpu()] = current_rmB[decided_r], k + 1
            if len(left) == 0:
                break
            denoiser, rows_r = denoiser.keep(left), rows_r[left]
            current_rmB, before_rmB = current_rmB[left], before_rmB[left]
    return Denoised(final_nmB, steps_n, [torch.stack(each) for each in states] if trace else None)


def guide(conditional: Tensor, null: Tensor, guidance_scale: float, form: GuidanceForm) -> Tensor:
    """Logits of both branches → Â_0 = Â_null + ω·(Â_cond - Â_null) (``prediction``, the article's), or the same rule on
    the log-odds before they become Â_0 (``logit``, which stays inside (-1, 1))."""
    if form == "logit":
        return to_codes(null + guidance_scale * (conditional - null))
    conditional, null = to_codes(conditional), to_codes(null)
    return null + guidance_scale * (conditional - null)


def commit_steps(states_SmB: Tensor) -> Tensor:
    """A block's states [S+1, m, B] → the step after which each bit kept its final sign, [m, B] int64; 0 where the noise
    had it from the start."""
    wrong_SmB = (states_SmB > 0) != (states_SmB[-1] > 0)
    step_S11 = torch.arange(1, len(states_SmB) + 1, device=states_SmB.device)[:, None, None]
    return (wrong_SmB * step_S11).amax(0)


def calls_per_step(guidance_scale: float) -> int:
    """Function evaluations (NFE) of the head in one step: 2 with guidance; ω = 1 is none and costs 1."""
    return 1 if guidance_scale == 1 else 2


def _estimate(denoiser: Denoiser, current_nmB: Tensor, schedule: Schedule, k: int) -> Tensor:
    """Â_0 at step k. The denoiser sees the code of a clean slot, as in training; the slot keeps its value, which with
    guidance may lie far outside [-1, 1]."""
    if not schedule.has_clean_slot(k):
        return denoiser(current_nmB, k)
    clean_1m1 = (schedule.t[k] == 0)[..., None]
    code_nmB = torch.where(current_nmB > 0, 1.0, -1.0)
    return torch.where(clean_1m1, current_nmB, denoiser(torch.where(clean_1m1, code_nmB, current_nmB), k))


def _update(estimate_nmB: Tensor, current_nmB: Tensor, schedule: Schedule, k: int, real_codes: RealCodes) -> Tensor:
    following_nmB = torch.lerp(estimate_nmB, current_nmB, schedule.ratio[k])
    if not schedule.lands(k):
        return following_nmB
    landed_1m1 = (schedule.ratio[k] == 0)[None]
    return torch.where(landed_1m1, real_codes(following_nmB), following_nmB)


def _decided(estimate_nmB: Tensor, before_nmB: Tensor, t_1m: Tensor, threshold: float) -> Tensor:
    """Whether each block may end, [n] bool."""
    stable_nmB = (estimate_nmB > 0) == (before_nmB > 0)
    certain_nmB = (estimate_nmB.abs() > threshold) | (t_1m == 0)[..., None]
    return (stable_nmB & certain_nmB).flatten(1).all(1)
