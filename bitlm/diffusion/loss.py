"""Losses on the bits of a block, as means over the B bits of each slot. The loss on tokens is the posterior's."""

import torch.nn.functional as F
from torch import Tensor

from bitlm.config import DiffusionConfig


def to_codes(logits: Tensor) -> Tensor:
    """Â_0 = 2·sigmoid(logit) - 1, the posterior mean of ±1 bits whose log-odds are ``logits``."""
    return (logits / 2).tanh()


def bit_loss(logits_mB: Tensor, clean_mB: Tensor, t: Tensor, diffusion: DiffusionConfig) -> Tensor:
    """logits and clean codes [..., m, B] and noise levels t (broadcastable to them) → loss per slot [..., m].

    ``velocity``: ‖(Â_0 - A_0)/max(t, t_min)‖²; ``x``: ‖Â_0 - A_0‖²; ``bce``: -log σ(A_0·logit), nats; all averaged
    over bits.
    """
    assert diffusion.loss != "token"
    if diffusion.loss == "bce":
        per_bit_mB = F.softplus(-clean_mB * logits_mB)
    else:
        per_bit_mB = (to_codes(logits_mB) - clean_mB) ** 2
        if diffusion.loss == "velocity":
            per_bit_mB = per_bit_mB / t.clamp(min=diffusion.t_min) ** 2
    return per_bit_mB.mean(dim=-1)
