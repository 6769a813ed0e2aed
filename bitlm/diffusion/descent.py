"""The article's sampler: all bits of a block descend from noise to their signs in K steps. A step of first order is
DDIM's, or Euler's for the velocity; DPM-Solver++(2M) (arXiv 2211.01095) is its second-order form at the same calls.
Guidance may be kept to an interval of noise levels (arXiv 2404.07724).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitlm.codes import Void, decode, encode
from bitlm.config.sampler import GuidanceForm, Solver
from bitlm.diffusion.guidance import guide
from bitlm.diffusion.loss import to_codes
from bitlm.diffusion.sampler import Denoiser, Sampled
from bitlm.diffusion.schedule import Schedule


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
class Descent:
    """A_next = ratio·A_t + (1 - ratio)·D with ratio = t_next/t, for each slot by its own levels.

    D is Â_0 or, with ``dpmpp_2m``, Â_k + h_k/(2·h_{k-1})·(Â_k - Â_{k-1}). A slot's last step lands on Â_0 itself; where
    its signs are a void corner, on the code of a real token. A clean slot shows the denoiser its code, as in training.
    """

    schedule: Schedule
    real_codes: RealCodes
    guidance_scale: float = 1.0
    guidance_form: GuidanceForm = "prediction"
    solver: Solver = "euler"

    draws = False
    fixed = True
    walks = False

    @property
    def levels(self) -> Tensor:
        return self.schedule.t.unique()

    @property
    def guided(self) -> bool:
        return self.max_calls > self.schedule.num_steps

    @property
    def max_calls(self) -> int:
        return self.schedule.calls

    def __call__(
        self, denoiser: Denoiser, noise_nmB: Tensor, uniform_nm: Tensor | None = None, *, trace: bool = False
    ) -> Sampled:
        """Exactly ``max_calls`` function evaluations for each block; ``uniform`` is not used."""
        current_nmB, before_nmB, states = noise_nmB, torch.zeros_like(noise_nmB), [noise_nmB]
        for k in range(self.schedule.num_steps):
            estimate_nmB = self._estimate(denoiser, current_nmB, before_nmB, k)
            target_nmB = estimate_nmB
            if self.solver == "dpmpp_2m":
                target_nmB = estimate_nmB + self.schedule.extrapolation[k] * (estimate_nmB - before_nmB)
            current_nmB, before_nmB = self._step(target_nmB, current_nmB, k), estimate_nmB
            if trace:
                states.append(current_nmB)
        calls_n = torch.full((len(noise_nmB),), self.max_calls)
        ids_nm = decode(current_nmB, self.real_codes.vocab_size)
        return Sampled(ids_nm, calls_n, list(torch.stack(states, dim=1)) if trace else None)

    def _estimate(self, denoiser: Denoiser, current_nmB: Tensor, before_nmB: Tensor, k: int) -> Tensor:
        """Â_0 at step k, where ``before`` is that of the last one. A clean slot keeps its value, which with guidance
        may lie far outside [-1, 1]."""
        t, shown_nmB = self.schedule.t[k], current_nmB
        clean_1m1 = (t == 0)[..., None]
        if self.schedule.has_clean_slot(k):
            shown_nmB = torch.where(clean_1m1, torch.where(current_nmB > 0, 1.0, -1.0), current_nmB)
        guides = self.schedule.guides(k)
        posterior = denoiser(shown_nmB, t, guides != "none", before_nmB)
        if guides == "none":
            estimate_nmB = to_codes(posterior.log_odds())
        else:
            estimate_nmB = guide(posterior, self.guidance_scale, self.guidance_form)
        if guides == "some":
            conditional_nmB = to_codes(posterior.log_odds().chunk(2)[0])
            estimate_nmB = torch.where(self.schedule.guided[k], estimate_nmB, conditional_nmB)
        return torch.where(clean_1m1, current_nmB, estimate_nmB) if shown_nmB is not current_nmB else estimate_nmB

    def _step(self, target_nmB: Tensor, current_nmB: Tensor, k: int) -> Tensor:
        following_nmB = torch.lerp(target_nmB, current_nmB, self.schedule.ratio[k])
        if not self.schedule.lands(k):
            return following_nmB
        landed_1m1 = (self.schedule.ratio[k] == 0)[None]
        return torch.where(landed_1m1, self.real_codes(following_nmB), following_nmB)
