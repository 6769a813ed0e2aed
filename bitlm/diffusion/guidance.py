"""Classifier-free guidance of a block's estimate: of the code (the article's), of the bits' log-odds, or of tokens."""

from torch import Tensor

from bitlm.config.sampler import GuidanceForm
from bitlm.diffusion.loss import to_codes
from bitlm.diffusion.posterior import Posterior


def guide(posterior: Posterior, scale: float, form: GuidanceForm) -> Tensor:
    """The posterior of 2n blocks, the conditional ones first and then the null ones → Â_0 [n, m, B], for ω = ``scale``.

    ``prediction``: Â_null + ω·(Â_cond - Â_null), which may leave [-1, 1]. ``logit``: the same rule on the log-odds of
    the bits before they become Â_0. ``token``: on log-probabilities, by ``Posterior.guided``, and then Σ_y p(y)·φ(y).
    """
    if form == "token":
        return to_codes(posterior.guided(scale).log_odds())
    conditional, null = posterior.log_odds().chunk(2)
    if form == "logit":
        return to_codes(null + scale * (conditional - null))
    conditional, null = to_codes(conditional), to_codes(null)
    return null + scale * (conditional - null)
