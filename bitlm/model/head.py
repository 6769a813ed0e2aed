"""The diffusion head: a small transformer over the m slots of one block, conditioned on t and on the context C.

Its shape is that of BitDance's public code (arXiv 2602.14041): adaptive layer norm whose parameters are shared by three
layers in a row, full attention inside the block, SwiGLU, a sinusoidal embedding of 1000·t, zero-initialized modulation
and output. Shapes: n blocks, m slots, B bits, D backbone width, H head width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.diffusion.process import matched_filter
from bitlm.errors import ConfigError
from bitlm.model.codebook import (
    Choice,
    Codebook,
    Lexicon,
    fits,
    in_chunks,
    likeliest,
    likely_row,
    log_odds_of_bits,
    nll,
)
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


@dataclass(frozen=True)
class Prepared:
    """What the head computes from C alone, once for all steps of n blocks.

    ``condition`` [n, m, H] is the adaptive norm's input without the part of t, ``prior`` [n, m, B] float32 the bits'
    log-odds on the direct context path. For the codebook: ``query`` [n, m, D] and ``lexicon``, or the ``choice`` that
    follows from them where it is small or cut down to the likeliest tokens. None: this head has no such thing.
    """

    condition: Tensor
    prior: Tensor | None = None
    query: Tensor | None = None
    lexicon: Lexicon | None = None
    choice: Choice | None = None

    def index(self, rows: Tensor) -> "Prepared":
        """The blocks at these places [n'] (int64)."""
        return self.map(lambda tensor: tensor[rows])

    def repeat(self, times: int) -> "Prepared":
        """Every block so often in a row."""
        return self.map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def cat(self, other: "Prepared") -> "Prepared":
        """These blocks and then the others, prepared in the same way."""
        others = other.tensors()
        return self.map(lambda tensor: torch.cat([tensor, next(others)]))

    def tensors(self) -> Iterator[Tensor]:
        """Those that belong to blocks, in the order of ``map``."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return iter(found)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prepared":
        """``change`` every tensor that belongs to blocks; what all blocks share stays."""
        own = (None if tensor is None else change(tensor) for tensor in (self.condition, self.prior, self.query))
        return Prepared(*own, self.lexicon, None if self.choice is None else self.choice.map(change))


class Constants(NamedTuple):
    """What a sampler asks of the head that no context changes: the codebook's ``lexicon`` and, for guidance, ``null``,
    one block whose condition is the null condition."""

    lexicon: Lexicon | None
    null: Prepared | None


class DiffusionHead(nn.Module):
    """(A_t, t; C) → the posterior log-odds of each bit, in all four kinds of denoiser.

    ``direct``: the network's output. ``matched_filter``: that, added to the log-odds of independent fair bits.
    ``codebook``: those of the codebook's mean code, with the network's answer as part of p (codebook.py).
    ``codebook_prior``: the network's output, added to those of the codebook without an answer.
    """

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        shape, m, B = config.diffusion_head, config.block_size, config.num_bits
        width = shape.width
        self.denoiser = shape.denoiser
        self.null_context = nn.Parameter(torch.empty(m, config.hidden_size))
        self.slot_embedding = nn.Parameter(torch.empty(m, width))
        self.input = nn.Linear(B, width)
        self.context = nn.Linear(config.hidden_size, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(HeadLayer(width, shape.head_dim, shape.ffn_ratio) for _ in range(shape.num_layers))
        groups = math.ceil(shape.num_layers / LAYERS_PER_MODULATION)
        self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(groups))
        self.final_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        answers = shape.codebook_rank or config.hidden_size if shape.denoiser == "codebook" else B
        self.output = nn.Linear(width, answers)  # to bits; U of the codebook
        self.prior = nn.Linear(m * config.hidden_size, m * B) if shape.context_path == "direct" else None
        self.codebook = Codebook(config) if config.has_codebook else None
        self.candidates = shape.codebook_candidates

    def prepare(self, context: Tensor, embedding: Tensor) -> Prepared:
        """C [n, m, D] and the backbone's embedding matrix [rows, D] → for n blocks, to train on."""
        prepared = self._prepare(context, self._lexicon(embedding))
        if self.codebook is None or not fits(prepared.query, self.codebook.vocab_size):
            return prepared
        return replace(prepared, choice=prepared.lexicon.choice(prepared.query))

    def _lexicon(self, embedding: Tensor) -> Lexicon | None:
        return None if self.codebook is None else self.codebook.lexicon(embedding)

    def _prepare(self, context: Tensor, lexicon: Lexicon | None) -> Prepared:
        prior = query = None
        if self.prior is not None:
            prior = self.prior(context.flatten(1)).float().unflatten(1, (context.shape[1], -1))
        if self.codebook is not None:
            query = self.codebook.queries(context)
        return Prepared(self.context(context), prior, query, lexicon)

    def constants(self, embedding: Tensor, guided: bool) -> Constants:
        """For all blocks of a generation."""
        lexicon = self._lexicon(embedding)
        if not guided:
            return Constants(lexicon, None)
        null = self._prepare(self.null_context[None], lexicon)
        if lexicon is not None:
            null = replace(null, query=None, lexicon=None, choice=lexicon.choice(null.query))
        return Constants(lexicon, null)

    def prepare_sampling(self, context: Tensor, constants: Constants) -> Prepared:
        """C [n, m, D] → for all steps of a sampler: n blocks or, if guided, these and then n null ones.

        Of a large vocabulary the codebook keeps the ``codebook_candidates`` tokens per slot that are likeliest given C,
        the same for both branches; p is exact among them.
        """
        lexicon, null = constants
        prepared = self._prepare(context, lexicon)
        if lexicon is not None:
            choice, tokens = likeliest(lexicon, prepared.query, prepared.prior, self.candidates)
            prepared = replace(prepared, query=None, lexicon=None, choice=choice)
            if null is not None and tokens is not None:
                null = replace(null, choice=None).repeat(len(context))
                return prepared.cat(replace(null, choice=constants.null.choice.among(tokens)))
        return prepared if null is None else prepared.cat(null.repeat(len(context)))

    def embed_time(self, t: Tensor) -> Tensor:
        """t [n or 1, m or 1] → the part of the adaptive norm's input that t alone decides, [n or 1, m, H]."""
        # A level that the slots share is embedded for each of them: rounding depends on the number of a product's rows.
        features = time_features(t.expand(-1, len(self.slot_embedding)))
        return self.time(features.to(self.time[0].weight.dtype))

    def forward(self, noisy: Tensor, t: Tensor, prepared: Prepared, time: Tensor | None = None) -> Tensor:
        """A_t [n, m, B] float32, t [n or 1, m or 1] float32 → logits [n, m, B] float32. ``time`` is ``embed_time(t)``,
        for a sampler that comes back to the same levels."""
        known = self._known(noisy, t, prepared)
        answer = self._answer(noisy, self.embed_time(t) if time is None else time, prepared, known)
        if self.denoiser == "codebook":
            return self._by_codebook(log_odds_of_bits, prepared, known, answer)
        if self.denoiser == "codebook_prior":
            return answer.float() + self._by_codebook(log_odds_of_bits, prepared, known)
        return answer.float() if known is None else answer.float() + known

    def token_nll(self, noisy: Tensor, t: Tensor, prepared: Prepared, targets: Tensor) -> Tensor:
        """-log p(y | A_t, C) of the tokens y [n, m], nats [n, m]; for the ``codebook`` denoiser, prepared to train."""
        if self.denoiser != "codebook":
            raise ConfigError(f"loss = token needs denoiser = codebook; {self.denoiser} does not tell probabilities")
        assert prepared.lexicon is not None
        known = self._known(noisy, t, prepared)
        answer = self._answer(noisy, self.embed_time(t), prepared, known)
        return self._by_codebook(nll, prepared, known, answer, targets)

    def _known(self, noisy: Tensor, t: Tensor, prepared: Prepared) -> Tensor | None:
        """The log-odds of the bits that need no network, [n, m, B] float32."""
        if self.denoiser == "direct":
            return prepared.prior
        known = matched_filter(noisy, t[..., None])
        return known if prepared.prior is None else known + prepared.prior

    def _answer(self, noisy: Tensor, time: Tensor, prepared: Prepared, known: Tensor | None) -> Tensor:
        """The network's [n, m, B], or the answer a [n, m, R] for the ``codebook`` denoiser."""
        condition = prepared.condition
        y = F.silu(time + condition)  # [n, m, H]
        x = self.input(noisy.to(condition.dtype)) + self.slot_embedding
        if self.prior is not None:
            x = x + condition
        if self.codebook is not None:
            likely = self._by_codebook(likely_row, prepared, known)  # [n, m, R]
            x = x + self.codebook.feature(likely)
        for i, layer in enumerate(self.layers):
            if i % LAYERS_PER_MODULATION == 0:
                modulation = self.modulations[i // LAYERS_PER_MODULATION](y).chunk(6, dim=-1)
            x = layer(x, modulation)
        scale, shift = self.final_modulation(y).chunk(2, dim=-1)
        output = self.output(torch.addcmul(shift, self.final_norm(x), 1 + scale))
        return output + self.codebook.couple(likely) if self.denoiser == "codebook" else output

    def _by_codebook(self, function: Callable[..., Tensor], prepared: Prepared, *given: Tensor) -> Tensor:
        """``function`` of the choice between the tokens and of what is given for each slot [n, m, ...]."""
        if prepared.choice is not None:
            return function(prepared.choice, *given)
        lexicon = prepared.lexicon

        def of_all(query: Tensor, *given: Tensor) -> Tensor:
            return function(lexicon.choice(query), *given)

        return in_chunks(of_all, len(lexicon.codes), prepared.query, *given)
