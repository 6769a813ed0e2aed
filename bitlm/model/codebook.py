"""The codebook: bits stay the space of diffusion, but the denoiser reasons over the V real tokens.

With E the backbone's embedding rows, R these or a copy of them with fewer columns, φ(y) the code of token y, u the
unigram frequencies, and for each slot i ``q`` = (W·C)_i and ℓ, the log-odds of its bits that need no network (the
matched filter's 2(1-t)·A_t/t² and, on the direct context path, those read from C):

    p⁰(y | A_t, C) ∝ exp(E_y·q + log u_y + ½ ℓ·φ(y)),             R̄_i = √R·Σ_y p⁰(y)·R_y, what slot i is likely to be
    a_i = U·h_i + Σ_j T_{j-i}·R̄_j                                 h the head's own hidden state, which is shown R̄
    p(y | A_t, C) ∝ p⁰(y)·exp(R_y·a_i),                           Â_0 = Σ_y p(y)·φ(y)

T couples the slots of a block: it says which tokens go together at a distance of j - i places. In training nothing of
n·m × V is held: the slots are worked off in chunks that the backward pass computes again. A sampler keeps the likeliest
tokens of each slot, and E_y·q + log u_y.
Shapes: n blocks, m slots, k = n·m slots in a row, c tokens of choice, B bits, D backbone width, R columns of R.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bitlm.codes import signs
from bitlm.errors import ConfigError
from bitlm.model.config import BitLMConfig

CHUNK = 2**23  # scores held at once in training, in float32: 32 MiB
TINY = 1e-30  # keeps the log-odds of a bit finite where no token, or none of weight, has its other value


@dataclass(frozen=True)
class Choice:
    """The tokens that p ranges over in each slot: ``base`` [..., c] float32 is the part of their score that C decides,
    ``rows`` and ``codes`` are R and φ, of all slots alike ([c, R], [c, B]) or of each ([..., c, R], [..., c, B])."""

    base: Tensor
    rows: Tensor
    codes: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Choice":
        """``change`` what belongs to slots; what all share stays."""
        tables = (table if table.ndim == 2 else change(table) for table in (self.rows, self.codes))
        return Choice(change(self.base), *tables)

    def among(self, tokens: Tensor) -> "Choice":
        """Of a choice between all V tokens, in n blocks or in one that stands for n: only ``tokens`` [n, m, c]."""
        base = self.base.expand(len(tokens), -1, -1).gather(-1, tokens)
        return Choice(base, self.rows[tokens], self.codes[tokens])

    def scores(self, log_odds: Tensor, answer: Tensor | None) -> Tensor:
        """log p up to a constant, [..., c] float32. ``log_odds`` ℓ [..., B] float32, ``answer`` a [..., R]."""
        scores = self.base
        if answer is not None:
            scores = scores + _dot(self.rows, answer).to(scores.dtype)
        with torch.autocast(scores.device.type, enabled=False):  # at little noise ℓ is large, and its differences count
            return scores + _dot(self.codes, log_odds / 2)


@dataclass(frozen=True)
class Lexicon:
    """Everything the codebook knows of the V tokens: ``embedding`` E [V, D], ``rows`` R [V, R], ``codes`` φ [V, B]
    and ``log_unigram`` log u [V]."""

    embedding: Tensor
    rows: Tensor
    codes: Tensor
    log_unigram: Tensor

    def choice(self, query: Tensor) -> Choice:
        """All V tokens, for queries q [..., D]."""
        return Choice(F.linear(query, self.embedding).float() + self.log_unigram, self.rows, self.codes)


class Codebook(nn.Module):
    """The parameters of the codebook, apart from U, which is the head's output map. Where the head answers with bits,
    there is no T."""

    log_unigram: Tensor

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        self.vocab_size, self.num_bits = config.vocab_size, config.num_bits
        size = config.block_size * config.hidden_size
        self.query = nn.Linear(size, size, bias=False)  # W
        self.reach = config.block_size - 1
        columns = config.diffusion_head.codebook_rank or config.hidden_size  # R
        self.low_rank = None
        if config.diffusion_head.codebook_rank is not None:
            self.low_rank = nn.Linear(config.hidden_size, columns, bias=False)
        self.feature = nn.Linear(columns, config.diffusion_head.width, bias=False)
        self.coupling = None
        if config.diffusion_head.denoiser == "codebook":
            self.coupling = nn.Linear((2 * self.reach + 1) * columns, columns, bias=False)  # T_{1-m} … T_{m-1}
        self.register_buffer("log_unigram", torch.zeros(config.vocab_size))

    def set_unigram(self, counts: Tensor) -> None:
        """u from the counts of the V tokens [V], each one more than seen, so that no token is impossible."""
        if counts.shape != self.log_unigram.shape:
            raise ConfigError(f"counts of {len(counts)} tokens for a vocabulary of {self.vocab_size}")
        smoothed = counts.double() + 1
        self.log_unigram.copy_((smoothed / smoothed.sum()).log())

    def queries(self, context: Tensor) -> Tensor:
        """C [n, m, D] → q [n, m, D]."""
        return self.query(context.flatten(1)).view(context.shape)

    def couple(self, likely: Tensor) -> Tensor:
        """R̄ [n, m, R] → Σ_j T_{j-i}·R̄_j [n, m, R]."""
        columns = likely.shape[-1]
        padded = F.pad(likely, (0, 0, self.reach, self.reach)).flatten(1)  # nothing beyond the block
        return self.coupling(padded.unfold(1, self.coupling.in_features, columns))

    def lexicon(self, embedding: Tensor) -> Lexicon:
        """From the backbone's embedding matrix, whose rows beyond V take no part."""
        embedding = embedding[: self.vocab_size]
        rows = embedding if self.low_rank is None else self.low_rank(embedding)
        codes = _all_codes(self.vocab_size, self.num_bits, embedding.device)
        return Lexicon(embedding, rows, codes, self.log_unigram)


def likeliest(lexicon: Lexicon, query: Tensor, log_odds: Tensor | None, count: int) -> tuple[Choice, Tensor | None]:
    """For q [n, m, D] and, on the direct path, ℓ of the context [n, m, B]: the ``count`` likeliest tokens of each slot
    and their ids [n, m, count], or all V tokens (and None) where there are no more."""
    if count >= len(lexicon.codes):
        return lexicon.choice(query), None

    def pick(query: Tensor, *log_odds: Tensor) -> Tensor:
        choice = lexicon.choice(query)
        scores = choice.scores(*log_odds, None) if log_odds else choice.base
        return scores.topk(count, dim=-1).indices

    given = [query] if log_odds is None else [query, log_odds]
    tokens = in_chunks(pick, len(lexicon.codes), *given)

    def gather(query: Tensor, tokens: Tensor) -> Tensor:
        return lexicon.choice(query).base.gather(-1, tokens)

    base = in_chunks(gather, len(lexicon.codes), query, tokens)
    return Choice(base, lexicon.rows[tokens], lexicon.codes[tokens]), tokens


def likely_row(choice: Choice, log_odds: Tensor) -> Tensor:
    """R̄ = √R·Σ_y p⁰(y)·R_y [..., R]: what C and A_t alone tell of the token. The entries of a row as long as
    one are about 1/√R: the factor lets what reads them learn as fast as what reads the bits."""
    weights = choice.scores(log_odds, None).softmax(-1).to(choice.rows.dtype)
    return _mean(choice.rows, weights) * math.sqrt(choice.rows.shape[-1])


def log_odds_of_bits(choice: Choice, log_odds: Tensor, answer: Tensor | None = None) -> Tensor:
    """log P(bit = 1) - log P(bit = 0) under p, [..., B] float32; Â_0 is their ``to_codes``."""
    weights = choice.scores(log_odds, answer).softmax(-1)
    with torch.autocast(weights.device.type, enabled=False):
        one, zero = (_mean((sign * choice.codes).clamp(min=0), weights) for sign in (1, -1))
    return (one + TINY).log() - (zero + TINY).log()


def nll(choice: Choice, log_odds: Tensor, answer: Tensor, targets: Tensor) -> Tensor:
    """-log p of token ids [...] among all V tokens, nats [...]."""
    scores = choice.scores(log_odds, answer)
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


def fits(slots: Tensor, width: int) -> bool:
    """Whether ``width`` scores for every slot of [n, m, ...] may be held at once."""
    return math.prod(slots.shape[:2]) * width <= CHUNK


def in_chunks(function: Callable[..., Tensor], width: int, *given: Tensor) -> Tensor:
    """``function`` of tensors [n, m, ...], applied to [k, ...] slots in a row, as many at once as may hold ``width``
    scores each. The backward pass computes every chunk again, if there is more than one."""
    shape = given[0].shape[:2]
    flat = [tensor.flatten(0, 1) for tensor in given]
    if fits(given[0], width):
        return function(*flat).unflatten(0, shape)
    size = max(1, CHUNK // width)
    parts = []
    for start in range(0, len(flat[0]), size):
        chunk = [tensor[start : start + size] for tensor in flat]
        parts.append(checkpoint(function, *chunk, use_reentrant=False) if torch.is_grad_enabled() else function(*chunk))
    return torch.cat(parts).unflatten(0, shape)


def _dot(table: Tensor, vector: Tensor) -> Tensor:
    """[c, x] or [..., c, x] with [..., x] → [..., c]."""
    return F.linear(vector, table) if table.ndim == 2 else (table @ vector[..., None]).squeeze(-1)


def _mean(table: Tensor, weights: Tensor) -> Tensor:
    """[c, x] or [..., c, x] with [..., c] → [..., x]."""
    return weights @ table if table.ndim == 2 else (weights[..., None, :] @ table).squeeze(-2)


def last_vector(m: int, D: int) -> Tensor:
    """The W [m·D, m·D] that gives every slot the last vector of C."""
    weight = torch.zeros(m, D, m, D)
    weight[:, :, -1] = torch.eye(D)
    return weight.view(m * D, m * D)


@lru_cache(maxsize=4)
def _all_codes(vocab_size: int, num_bits: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the same tensor serves training
        return signs(torch.arange(vocab_size, device=device), num_bits)
