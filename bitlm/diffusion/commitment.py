"""Token commitment: a slot goes from pure noise to a token in one call, and the following calls see it as clean.

To keep what is surest, and all that is sure enough, is known from MaskGIT (arXiv 2202.04200) and Fast-dLLM (arXiv
2505.22618).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitlm.codes import encode
from bitlm.config.sampler import Order
from bitlm.diffusion.posterior import Posterior
from bitlm.diffusion.sampler import Denoiser, Sampled, Walk


@dataclass(frozen=True)
class Commitment:
    """A block of m = ``block_size`` slots in at most m / ``slots_per_call`` calls, twice that with guidance.

    In each call ``slots_per_call`` slots land: the leftmost of those left, or the surest, which are those whose most
    probable token has the highest p. So does every other slot whose most probable token has p > ``threshold``. A slot
    lands on its most probable token or, at a ``temperature`` τ above 0, on a sample of p^(1/τ). Guidance is of tokens.
    """

    block_size: int
    order: Order = "left"
    slots_per_call: int = 1
    threshold: float | None = None
    temperature: float = 0.0
    guidance_scale: float = 1.0

    @property
    def levels(self) -> Tensor:
        return torch.tensor([0.0, 1.0])

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1

    @property
    def draws(self) -> bool:
        return self.temperature > 0

    @property
    def max_calls(self) -> int:
        return self.block_size // self.slots_per_call * (2 if self.guided else 1)

    @property
    def fixed(self) -> bool:
        return self.threshold is None

    @property
    def walks(self) -> bool:
        """Whether all blocks go from the first slot to the last, the same number in each call."""
        return self.order == "left" and self.fixed

    def __call__(
        self, denoiser: Denoiser, noise_nmB: Tensor, uniform_nm: Tensor | None = None, *, trace: bool = False
    ) -> Sampled:
        """Blocks that are complete leave the batch. A ``state`` is the code of a landed slot, the noise of another."""
        walk = denoiser.walk(self.guided) if self.walks else None
        if walk is not None:
            return self._along(walk, noise_nmB, uniform_nm, trace)
        n, m, B = noise_nmB.shape
        most = m // self.slots_per_call
        ids_nm = torch.zeros(n, m, dtype=torch.long, device=noise_nmB.device)
        steps_n = torch.full((n,), most)
        states = [[start] for start in noise_nmB] if trace else []
        work = _Work(
            denoiser,
            rows=torch.arange(n, device=noise_nmB.device),
            shown=noise_nmB,
            landed=torch.zeros_like(ids_nm, dtype=torch.bool),
            uniform=uniform_nm,
        )
        for step in range(1, most + 1):
            posterior = work.denoiser(work.shown, 1 - work.landed.float(), self.guided)
            if self.guided:
                posterior = posterior.guided(self.guidance_scale)
            tokens_rm, landing_rm = self._choose(posterior, work.landed, work.uniform)
            ids_nm[work.rows] = torch.where(landing_rm, tokens_rm, ids_nm[work.rows])
            codes_rmB = encode(tokens_rm, B, check=False)
            work.shown = torch.where(landing_rm[..., None], codes_rmB, work.shown)
            work.landed = work.landed | landing_rm
            if trace:
                for row, state in zip(work.rows.tolist(), work.shown, strict=True):
                    states[row].append(state)
            if self.threshold is not None and step < most:
                complete_r = work.landed.all(1)
                steps_n[work.rows[complete_r].cpu()] = step
                if complete_r.all():
                    break
                work.keep(~complete_r)
        calls_n = steps_n * (2 if self.guided else 1)
        return Sampled(ids_nm, calls_n, [torch.stack(each) for each in states] if trace else None)

    def _along(self, walk: Walk, noise_nmB: Tensor, uniform_nm: Tensor | None, trace: bool) -> Sampled:
        n, m, B = noise_nmB.shape
        count, states = self.slots_per_call, [noise_nmB]
        ids_nm = torch.empty(n, 0, dtype=torch.long, device=noise_nmB.device)
        for first in range(0, m, count):
            posterior = walk(ids_nm[:, max(first - count, 0) :], count)
            if self.guided:
                posterior = posterior.guided(self.guidance_scale)
            if self.temperature == 0:
                tokens_nc = posterior.mode()
            else:
                tokens_nc = posterior.sample(uniform_nm[:, first : first + count], self.temperature)
            ids_nm = torch.cat([ids_nm, tokens_nc], dim=1)
            if trace:
                codes_npB = encode(ids_nm, B, check=False)
                states.append(torch.cat([codes_npB, noise_nmB[:, first + count :]], dim=1))
        calls_n = torch.full((n,), self.max_calls)
        return Sampled(ids_nm, calls_n, list(torch.stack(states, dim=1)) if trace else None)

    def _choose(self, posterior: Posterior, landed_rm: Tensor, uniform_rm: Tensor | None) -> tuple[Tensor, Tensor]:
        """A token for every slot [r, m], and which slots land on theirs."""
        if self.order == "surest" or self.threshold is not None:
            tokens_rm, log_p_rm = posterior.best()
        elif self.temperature == 0:
            tokens_rm = posterior.mode()
        if self.order == "left":
            place_rm = (~landed_rm).cumsum(1) - 1
        else:
            sure_rm = log_p_rm.masked_fill(landed_rm, -torch.inf)
            place_rm = sure_rm.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        landing_rm = place_rm < self.slots_per_call
        if self.threshold is not None:
            landing_rm = landing_rm | (log_p_rm.exp() > self.threshold)
        if self.temperature > 0:
            tokens_rm = posterior.sample(uniform_rm, self.temperature)
        return tokens_rm, landing_rm & ~landed_rm


@dataclass
class _Work:
    """The r blocks still at work: their places in the batch, what the denoiser is shown [r, m, B], and which slots have
    landed [r, m]."""

    denoiser: Denoiser
    rows: Tensor
    shown: Tensor
    landed: Tensor
    uniform: Tensor | None

    def keep(self, chosen_r: Tensor) -> None:
        """Only the blocks where ``chosen`` [r] is True."""
        if chosen_r.all():
            return
        index = chosen_r.nonzero().flatten()
        self.denoiser, self.rows = self.denoiser.keep(index), self.rows[index]
        self.shown, self.landed = self.shown[index], self.landed[index]
        self.uniform = None if self.uniform is None else self.uniform[index]
