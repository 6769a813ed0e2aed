"""The diffusion head's network: a small transformer over slots of one block, (A_t, t, C) → hidden states.

Its shape is that of BitDance's public code (arXiv 2602.14041): adaptive layer norm whose parameters are shared by three
layers in a row, full attention inside the block, SwiGLU, a sinusoidal embedding of 1000·t, zero-initialized modulation.

With ``attention="causal"`` a slot sees only what tells it something, and clean slots never see noisy ones, so that
keys and values of clean slots can be kept: see ``visible_slots``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.model.config import BitLMConfig
from bitlm.model.prefix import KeptSlots

LAYERS_PER_MODULATION = 3
FREQUENCIES = 256
EPS = 1e-6


def time_features(t: Tensor) -> Tensor:
    """Sinusoids of 1000·t at 128 frequencies from 1 down to 1e-4: t [...] → [..., 256], float32."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = 1000 * t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def visible_slots(t_nm: Tensor) -> Tensor:
    """Causal attention inside the block: which slots each slot sees, [n, m, m] bool.

    A slot sees itself. Clean slots (t = 0) are seen by the noisy ones and by the clean ones after them; noisy slots by
    the noisy ones; pure noise (t = 1), which tells nothing, by nobody else.
    """
    clean_nm, telling_nm = t_nm == 0, t_nm < 1
    m = t_nm.shape[-1]
    before_mm = torch.ones(m, m, dtype=torch.bool, device=t_nm.device).tril()
    of_noisy_n1m = telling_nm[:, None]
    of_clean_nmm = clean_nm[:, None] & before_mm
    seen_nmm = torch.where(clean_nm[..., None], of_clean_nmm, of_noisy_n1m)
    return seen_nmm | torch.eye(m, dtype=torch.bool, device=t_nm.device)


def posterior_mean_input(noisy_nmB: Tensor, t: Tensor) -> Tensor:
    """E[A_0 | A_t] for standard normal A_0: A_t·(1-t)/((1-t)² + t²), which is 0 for pure noise and A_0 at t = 0."""
    t = t[..., None]
    return noisy_nmB * ((1 - t) / ((1 - t) ** 2 + t**2))


class HeadLayer(nn.Module):
    """Attention over the block's slots and SwiGLU, each modulated and gated per slot."""

    def __init__(self, width: int, head_dim: int, ffn_ratio: float) -> None:
        super().__init__()
        hidden = int(width * ffn_ratio)
        self.num_heads, self.head_dim = width // head_dim, head_dim
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=EPS)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(
        self,
        x_nsH: Tensor,
        modulation: tuple[Tensor, ...],
        further: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """``further`` keys and values [n, heads, places, head_dim] stand before those of the slots.
        ``mask`` [n or 1, 1, s, places + s] is True where a slot sees. Returns the slots and, to ``keep``, all keys and
        values. These may be views, of which FSDP warns in training."""
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation  # each [n or 1, s, H]
        mixed_nsH, places = self.attend(torch.addcmul(shift1, self.attention_norm(x_nsH), 1 + scale1), further, mask)
        x_nsH = x_nsH + gate1 * mixed_nsH
        gate, value = self.up(torch.addcmul(shift2, self.ffn_norm(x_nsH), 1 + scale2)).chunk(2, dim=-1)
        return x_nsH + gate2 * self.down(F.silu(gate) * value), places if keep else None

    def attend(
        self, x_nsH: Tensor, further: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n, s, width = x_nsH.shape
        qkv = self.qkv(x_nsH).view(n, s, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [n, heads, s, head_dim]
        if further is not None:
            k, v = torch.cat([further[0], k], dim=2), torch.cat([further[1], v], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(n, s, width)), (k, v)


class HeadNetwork(nn.Module):
    """C acts through the adaptive norms (``context_path="norm"``), also through its image that is added to the input
    (``"direct"``), or through that image and as m further keys and values in every layer (``"attention"``)."""

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        head = config.diffusion_head
        H = head.width
        self.path, self.causal = head.context_path, head.attention == "causal"
        self.num_heads, self.head_dim = H // head.head_dim, head.head_dim
        self.slot_embedding = nn.Parameter(torch.empty(config.block_size, H))
        self.input = nn.Linear(config.num_bits, H)
        self.estimate = nn.Linear(config.num_bits, H, bias=False) if head.self_conditioning else None
        self.condition = nn.Linear(config.hidden_size, H)
        self.memory = None
        if self.path == "attention":
            self.memory = nn.Linear(config.hidden_size, head.num_layers * 2 * H)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, H), nn.SiLU(), nn.Linear(H, H))
        self.layers = nn.ModuleList(HeadLayer(H, head.head_dim, head.ffn_ratio) for _ in range(head.num_layers))
        groups = math.ceil(head.num_layers / LAYERS_PER_MODULATION)
        self.modulations = nn.ModuleList(nn.Linear(H, 6 * H) for _ in range(groups))
        self.final_norm = nn.LayerNorm(H, eps=EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(H, 2 * H)

    def embed_time(self, t: Tensor) -> Tensor:
        """t [n or 1, s] → its part of the adaptive norm's input, [n or 1, s, H]; with s = 1 it serves all m slots."""
        # A level that the slots share is embedded for each of them: rounding depends on the number of a product's rows.
        features = time_features(t.expand(-1, len(self.slot_embedding)) if t.shape[1] == 1 else t)
        return self.time(features.to(self.time[0].weight.dtype))

    def remember(self, context_nmD: Tensor) -> Tensor | None:
        """Keys and values of C in every layer, [n, layers, 2, heads, m, head_dim]; None on the other context paths."""
        if self.memory is None:
            return None
        parts = self.memory(context_nmD).unflatten(-1, (len(self.layers), 2, self.num_heads, self.head_dim))
        return parts.permute(0, 2, 3, 4, 1, 5)

    def modulate(self, time_nsH: Tensor, condition_nsH: Tensor | None) -> list[Tensor]:
        """``embed_time(t)`` (one row may serve all n blocks) and ``condition(C)`` → the parameters of the adaptive
        norms: of each group of layers [n or 1, s, 6H], and at last of the final norm [n or 1, s, 2H]. On the path
        ``attention`` C has no part in them, and may be None."""
        modulated_by = F.silu(time_nsH if self.path == "attention" else time_nsH + condition_nsH)
        return [linear(modulated_by) for linear in (*self.modulations, self.final_modulation)]

    def forward(
        self,
        x_nsH: Tensor,
        modulations: list[Tensor],
        condition_nsH: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        kept: KeptSlots | None = None,
        keep: int = 0,
    ) -> Tensor:
        """What is shown of each slot [n, s, H], ``modulate(…)``, ``condition(C)`` of the slots and ``remember(C)`` →
        hidden states [n, s, H].

        ``mask`` [n or 1, s, slots] says which slots each one sees, None: all; C is seen by all. The ``kept`` slots
        stand before these s; afterwards it also holds the first ``keep`` of them.
        """
        if self.path != "norm":
            x_nsH = x_nsH + condition_nsH
        if mask is not None:
            mask = F.pad(mask, (0 if memory is None else memory.shape[-2], 0), value=True)[:, None]
        for i, layer in enumerate(self.layers):
            if i % LAYERS_PER_MODULATION == 0:
                modulation = modulations[i // LAYERS_PER_MODULATION].chunk(6, dim=-1)
            further = None if memory is None else (memory[:, i, 0], memory[:, i, 1])
            if kept is not None and len(kept.layers) > i:
                further = kept.layers[i]  # begins with C's
            x_nsH, places = layer(x_nsH, modulation, further, mask, keep=kept is not None)
            if kept is not None:
                end = places[0].shape[2] - x_nsH.shape[1] + keep
                kept.layers[i : i + 1] = [tuple(each[:, :, :end] for each in places)]
        scale, shift = modulations[-1].chunk(2, dim=-1)
        return torch.addcmul(shift, self.final_norm(x_nsH), 1 + scale)
