"""The diffusion head: a small transformer over the m slots of one block, conditioned on t and on the context C.

Its shape is that of BitDance's public code (arXiv 2602.14041): adaptive layer norm whose parameters are shared by three
layers in a row, full attention inside the block, SwiGLU, a sinusoidal embedding of 1000·t, zero-initialized modulation
and output. Shapes: n blocks, m slots, B bits, D backbone width, H head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.diffusion.process import matched_filter
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

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation
        x = x + gate1 * self.attend(torch.addcmul(shift1, self.attention_norm(x), 1 + scale1))
        gate, value = self.up(torch.addcmul(shift2, self.ffn_norm(x), 1 + scale2)).chunk(2, dim=-1)
        return x + gate2 * self.down(F.silu(gate) * value)

    def attend(self, x: Tensor) -> Tensor:
        n, m, width = x.shape
        q, k, v = self.qkv(x).view(n, m, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        # each [n, heads, m, head_dim]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, m, width))


class DiffusionHead(nn.Module):
    """(A_t, t; C) → the log-odds of each bit. ``condition`` is what depends on C alone: a sampler computes it once per
    block."""

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        width = config.head_width
        self.denoiser = config.denoiser
        self.null_context = nn.Parameter(torch.empty(config.block_size, config.hidden_size))
        self.slot_embedding = nn.Parameter(torch.empty(config.block_size, width))
        self.input = nn.Linear(config.num_bits, width)
        self.context = nn.Linear(config.hidden_size, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(
            HeadLayer(width, config.head_head_dim, config.head_ffn_ratio) for _ in range(config.head_num_layers)
        )
        groups = math.ceil(config.head_num_layers / LAYERS_PER_MODULATION)
        self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(groups))
        self.final_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, config.num_bits)

    def condition(self, context: Tensor) -> Tensor:
        """C [n, m, D] → [n, m, H], the part of the modulation's input that does not depend on t."""
        return self.context(context)

    def null_condition(self) -> Tensor:
        """[1, m, H], the condition of the unconditional branch."""
        return self.context(self.null_context)[None]

    def forward(self, noisy: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """A_t [n, m, B] float32, t [n or 1, 1], condition [n, m, H] → logits [n, m, B] float32."""
        dtype = condition.dtype
        y = F.silu(self.time(time_features(t).to(dtype)) + condition)  # [n, m, H]
        x = self.input(noisy.to(dtype)) + self.slot_embedding
        for i, layer in enumerate(self.layers):
            if i % LAYERS_PER_MODULATION == 0:
                modulation = self.modulations[i // LAYERS_PER_MODULATION](y).chunk(6, dim=-1)
            x = layer(x, modulation)
        scale, shift = self.final_modulation(y).chunk(2, dim=-1)
        logits = self.output(torch.addcmul(shift, self.final_norm(x), 1 + scale)).float()
        if self.denoiser == "matched_filter":
            logits = logits + matched_filter(noisy, t[..., None])
        return logits
