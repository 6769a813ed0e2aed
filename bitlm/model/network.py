"""The diffusion head's network: a small transformer over the m slots of one block, (A_t, t, C) → hidden states.

Its shape is that of BitDance's public code (arXiv 2602.14041): adaptive layer norm whose parameters are shared by three
layers in a row, full attention inside the block, SwiGLU, a sinusoidal embedding of 1000·t, zero-initialized modulation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.model.config import BitLMConfig

LAYERS_PER_MODULATION = 3
FREQUENCIES = 256
EPS = 1e-6


def time_features(t: Tensor) -> Tensor:
    """Sinusoids of 1000·t at 128 frequencies from 1 down to 1e-4: t [...] → [..., 256], float32."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = 1000 * t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


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

    def forward(self, x_nmH: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation  # each [n, m, H]
        x_nmH = x_nmH + gate1 * self.attend(torch.addcmul(shift1, self.attention_norm(x_nmH), 1 + scale1))
        gate, value = self.up(torch.addcmul(shift2, self.ffn_norm(x_nmH), 1 + scale2)).chunk(2, dim=-1)
        return x_nmH + gate2 * self.down(F.silu(gate) * value)

    def attend(self, x_nmH: Tensor) -> Tensor:
        n, m, width = x_nmH.shape
        qkv = self.qkv(x_nmH).view(n, m, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [n, heads, m, head_dim]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, m, width))


class HeadNetwork(nn.Module):
    """With ``context_path="direct"`` the image of C is also added to the input; else C acts through the norms alone."""

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        head = config.diffusion_head
        H = head.width
        self.adds_condition = head.context_path == "direct"
        self.slot_embedding = nn.Parameter(torch.empty(config.block_size, H))
        self.input = nn.Linear(config.num_bits, H)
        self.condition = nn.Linear(config.hidden_size, H)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, H), nn.SiLU(), nn.Linear(H, H))
        self.layers = nn.ModuleList(HeadLayer(H, head.head_dim, head.ffn_ratio) for _ in range(head.num_layers))
        groups = math.ceil(head.num_layers / LAYERS_PER_MODULATION)
        self.modulations = nn.ModuleList(nn.Linear(H, 6 * H) for _ in range(groups))
        self.final_norm = nn.LayerNorm(H, eps=EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(H, 2 * H)

    def embed_time(self, t: Tensor) -> Tensor:
        """t [n or 1, m or 1] → its part of the adaptive norm's input, [n or 1, m, H]."""
        # A level that the slots share is embedded for each of them: rounding depends on the number of a product's rows.
        features = time_features(t.expand(-1, len(self.slot_embedding)))
        return self.time(features.to(self.time[0].weight.dtype))

    def forward(
        self, noisy_nmB: Tensor, time_nmH: Tensor, condition_nmH: Tensor, features_nmH: Tensor | None = None
    ) -> Tensor:
        """A_t, ``embed_time(t)`` and ``condition(C)`` → hidden states [n, m, H]. ``features`` are added to the input.

        ``time`` may have one row for all n blocks.
        """
        modulated_by = F.silu(time_nmH + condition_nmH)
        x_nmH = self.input(noisy_nmB.to(condition_nmH.dtype)) + self.slot_embedding
        if self.adds_condition:
            x_nmH = x_nmH + condition_nmH
        if features_nmH is not None:
            x_nmH = x_nmH + features_nmH
        for i, layer in enumerate(self.layers):
            if i % LAYERS_PER_MODULATION == 0:
                modulation = self.modulations[i // LAYERS_PER_MODULATION](modulated_by).chunk(6, dim=-1)
            x_nmH = layer(x_nmH, modulation)
        scale, shift = self.final_modulation(modulated_by).chunk(2, dim=-1)
        return torch.addcmul(shift, self.final_norm(x_nmH), 1 + scale)
