"""The codebook: bits stay the space of diffusion, but the denoiser reasons over the V real tokens.

With E the backbone's embedding rows, R these or a copy of them with fewer columns, φ(y) the code of token y, u the
unigram frequencies, and for each slot i ``q`` = (W·C)_i and ℓ the evidence on its bits that needs no network (the
matched filter's 2(1-t)·A_t/t² and, on the direct context path, the log-odds read from C):

    p⁰(y | A_t, C) ∝ exp(E_y·q + log u_y + ½ ℓ·φ(y)),             R̄_i = √R·Σ_y p⁰(y)·R_y, the mean row of slot i
    a_i = U·h_i + Σ_j T_{j-i}·R̄_j                                 the correction; h are the network's hidden states
    p(y | A_t, C) ∝ p⁰(y)·exp(R_y·a_i),                           Â_0 = Σ_y p(y)·φ(y)

T couples the slots of a block: it says which tokens go together at a distance of j - i places. Training holds n·m × V
values where these fit, and else takes the slots in chunks, which the backward pass computes again; log p of given
tokens never needs them (``token_log_prob``). A sampler keeps the likeliest tokens of each slot, and E_y·q + log u_y.
Shapes: n blocks, m slots, k = n·m slots in a row, c tokens, B bits, D backbone width, R columns of R.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bitlm.codes import encode
from bitlm.errors import ConfigError
from bitlm.model.config import BitLMConfig
from bitlm.model.prefix import PrefixPass
from bitlm.model.state import BlockState, HeadConstants
from bitlm.model.token_log_prob import token_log_prob

TINY = 1e-30  # keeps the log-odds of a bit finite where no token, or none of weight, has its other value


class Codebook(nn.Module):
    """The parameters of the codebook, apart from U, which is the readout's output map. Without ``coupled`` there is no
    T."""

    log_unigram: Tensor

    def __init__(self, config: BitLMConfig, coupled: bool) -> None:
        super().__init__()
        head = config.diffusion_head
        self.vocab_size, self.num_bits = config.vocab_size, config.num_bits
        size = config.block_size * config.hidden_size
        self.query = nn.Linear(size, size, bias=False)  # W
        self.reach = config.block_size - 1
        columns = head.codebook_rank or config.hidden_size  # R
        self.low_rank = None
        if head.codebook_rank is not None:
            self.low_rank = nn.Linear(config.hidden_size, columns, bias=False)
        self.feature = nn.Linear(columns, head.width, bias=False)
        self.coupling = None
        if coupled:
            self.coupling = nn.Linear((2 * self.reach + 1) * columns, columns, bias=False)  # T_{1-m} … T_{m-1}
        self.register_buffer("log_unigram", torch.zeros(config.vocab_size, dtype=torch.float32))

    def set_unigram(self, counts: Tensor) -> None:
        """u from the counts of the V tokens [V], each one more than seen, so that no token is impossible."""
        if counts.shape != self.log_unigram.shape:
            raise ConfigError(f"counts of {len(counts)} tokens for a vocabulary of {self.vocab_size}")
        smoothed = counts.double() + 1
        self.log_unigram.copy_((smoothed / smoothed.sum()).log())

    def constants(self, embedding: Tensor, tables: bool = True) -> HeadConstants:
        """From the backbone's embedding matrix [rows, D]. ``tables``: with the rows and codes of all V tokens, which
        ``over_tokens`` needs where there is evidence or a correction."""
        codes = _all_codes(self.vocab_size, self.num_bits, embedding.device)
        constants = HeadConstants(embedding=embedding, log_unigram=self.log_unigram, codes=codes)
        if not tables:
            return constants
        rows = embedding[: self.vocab_size]
        return replace(constants, rows=rows if self.low_rank is None else self.low_rank(rows))

    def add_query(self, block: BlockState, context_nmD: Tensor) -> BlockState:
        """The block with q = W·C."""
        return replace(block, query=self.query(context_nmD.flatten(1)).view(context_nmD.shape))

    def add_scores(self, block: BlockState, constants: HeadConstants) -> BlockState:
        """The block with the scores of all V tokens in place of the query, unless these take too much memory."""
        if block.scores is None and _fits(block.query, self.vocab_size):
            return replace(block, scores=token_scores(block.query, constants), query=None)
        return block

    def rows_of(self, ids: Tensor, constants: HeadConstants) -> Tensor:
        """√R·R_y, the mean row of a token that is known, [..., R]."""
        rows = F.embedding(ids, constants.embedding)
        rows = rows if self.low_rank is None else self.low_rank(rows)
        return rows * math.sqrt(rows.shape[-1])

    def log_prob(
        self,
        ids_nm: Tensor,
        constants: HeadConstants,
        block: BlockState,
        evidence: Tensor | None = None,
        correction: Tensor | None = None,
    ) -> Tensor:
        """log p of given tokens among all V, [n, m] float32, of a block that has no scores."""
        terms = [(constants.embedding, block.query)]
        if correction is not None:
            terms.append((constants.rows, correction))
        if evidence is not None:
            terms.append((constants.codes, evidence / 2))
        flat = [(table, vector.flatten(0, 1)) for table, vector in terms]
        held = scores_held(ids_nm.device)
        return token_log_prob(flat, constants.log_unigram, ids_nm.flatten(), held).view(ids_nm.shape)

    def keep_likeliest(self, block: BlockState, constants: HeadConstants, count: int) -> BlockState:
        """The block with the scores of the ``count`` tokens per slot that are likeliest given C, and these tokens; with
        the scores of all V where there are no more."""
        query_nmD = block.query
        if count >= self.vocab_size:
            return replace(block, scores=token_scores(query_nmD, constants), query=None)

        def likeliest(query_kD: Tensor, *context_log_odds: Tensor) -> Tensor:
            scores_kV = token_scores(query_kD, constants)
            if context_log_odds:
                scores_kV = posterior_scores(scores_kV, constants.rows, constants.codes, *context_log_odds)
            return scores_kV.topk(count, dim=-1).indices.sort(dim=-1).values

        def scores_of(query_kD: Tensor, tokens_kc: Tensor) -> Tensor:
            return token_scores(query_kD, constants).gather(-1, tokens_kc)

        evidence = [] if block.context_log_odds is None else [block.context_log_odds]
        tokens_nmc = in_chunks(likeliest, self.vocab_size, query_nmD, *evidence)
        scores_nmc = in_chunks(scores_of, self.vocab_size, query_nmD, tokens_nmc)
        rows, codes = constants.rows[tokens_nmc], constants.codes[tokens_nmc]
        return replace(block, scores=scores_nmc, query=None, rows=rows, codes=codes, tokens=tokens_nmc)

    def couple(self, mean_rows_nmR: Tensor) -> Tensor:
        """R̄ → Σ_j T_{j-i}·R̄_j [n, m, R]."""
        columns = mean_rows_nmR.shape[-1]
        padded = F.pad(mean_rows_nmR, (0, 0, self.reach, self.reach)).flatten(1)  # nothing beyond the block
        return self.coupling(padded.unfold(1, self.coupling.in_features, columns))

    def couple_before(self, mean_rows_npR: Tensor, shown: PrefixPass) -> Tensor:
        """Rows of the clean slots → Σ_{j<prefix} T_{j-slot}·R̄_j of each query, [n, q, R]."""
        if not mean_rows_npR.shape[1]:
            return mean_rows_npR.new_zeros(len(mean_rows_npR), len(shown.queries), mean_rows_npR.shape[2])
        window_nqkR = mean_rows_npR.index_select(1, shown.window).unflatten(1, shown.seen.shape[:2])
        window_nqkR = torch.where(shown.seen, window_nqkR, 0)
        columns = self.reach * mean_rows_npR.shape[2]
        return F.linear(window_nqkR.flatten(2), self.coupling.weight[:, :columns])

    def widen(self, correction: Tensor) -> Tensor:
        """a [..., R] → [..., D], so that E_y·(q + this) = E_y·q + R_y·a."""
        return correction if self.low_rank is None else correction @ self.low_rank.weight

    def over_tokens(
        self, function: Callable[..., Any], constants: HeadConstants, block: BlockState, *slots: Tensor
    ) -> Any:
        """``function(scores, rows, codes, *slots)`` over the tokens of the block; ``slots`` [n, m, ...] go along."""
        if block.scores is not None:
            rows = constants.rows if block.rows is None else block.rows
            codes = constants.codes if block.codes is None else block.codes
            return function(block.scores, rows, codes, *slots)

        def over_all(query_kD: Tensor, *slots: Tensor) -> Any:
            return function(token_scores(query_kD, constants), constants.rows, constants.codes, *slots)

        return in_chunks(over_all, self.vocab_size, block.query, *slots)


def mean_row(scores: Tensor, rows: Tensor, codes: Tensor, evidence: Tensor) -> Tensor:
    """R̄ = √R·Σ_y p⁰(y)·R_y, [..., R], for scores [..., c] and evidence ℓ [..., B]. The entries of a row as long as one
    are about 1/√R: the factor lets what reads them learn as fast as what reads the bits."""
    weights = posterior_scores(scores, rows, codes, evidence).softmax(-1).to(rows.dtype)
    return _mean(rows, weights) * math.sqrt(rows.shape[-1])


def bit_log_odds(log_p: Tensor, codes: Tensor) -> Tensor:
    """log P(bit = 1) - log P(bit = 0), [..., B] float32, of log p + const [..., c]; Â_0 is their ``to_codes``."""
    weights = log_p.softmax(-1)
    with torch.autocast(weights.device.type, enabled=False):
        one, zero = (_mean((sign * codes).clamp(min=0), weights) for sign in (1, -1))
    return (one + TINY).log() - (zero + TINY).log()


def in_chunks(function: Callable[..., Any], width: int, *slots: Tensor) -> Any:
    """``function`` of tensors [n, m, ...], applied to [k, ...] slots in a row, as many at once as may hold ``width``
    scores each. It answers with a tensor or a tuple of them. The backward pass computes every chunk again, if there is
    more than one."""
    shape = slots[0].shape[:2]
    flat = [tensor.flatten(0, 1) for tensor in slots]
    if _fits(slots[0], width):
        return _map(lambda found: found.unflatten(0, shape), function(*flat))
    size = max(1, scores_held(flat[0].device) // width)
    parts = []
    for start in range(0, len(flat[0]), size):
        chunk = [tensor[start : start + size] for tensor in flat]
        parts.append(checkpoint(function, *chunk, use_reentrant=False) if torch.is_grad_enabled() else function(*chunk))
    return _map(lambda *found: torch.cat(found).unflatten(0, shape), *parts)


def _map(change: Callable[..., Tensor], *found: Any) -> Any:
    """``change`` of tensors, or entry by entry of tuples of them."""
    if isinstance(found[0], Tensor):
        return change(*found)
    return tuple(change(*entries) for entries in zip(*found, strict=True))


def last_vector(m: int, D: int) -> Tensor:
    """The W [m·D, m·D] that gives every slot the last vector of C."""
    weight = torch.zeros(m, D, m, D)
    weight[:, :, -1] = torch.eye(D)
    return weight.view(m * D, m * D)


def token_scores(query: Tensor, constants: HeadConstants) -> Tensor:
    """q [..., D] → E_y·q + log u_y of all V tokens, [..., V] float32."""
    V = len(constants.log_unigram)
    return F.linear(query, constants.embedding[:V]).float() + constants.log_unigram


def posterior_scores(
    scores: Tensor, rows: Tensor, codes: Tensor, evidence: Tensor | None = None, correction: Tensor | None = None
) -> Tensor:
    """log p up to a constant, [..., c] float32, of scores [..., c], evidence ℓ [..., B] float32, correction a [..., R].
    ``rows`` and ``codes`` belong to all slots ([c, R], [c, B]) or to each ([..., c, R], [..., c, B])."""
    if correction is not None:
        scores = scores + _dot(rows, correction).to(scores.dtype)
    if evidence is None:
        return scores
    with torch.autocast(scores.device.type, enabled=False):  # at little noise ℓ is large, and its differences count
        return scores + _dot(codes, evidence / 2)


def _fits(slots: Tensor, width: int) -> bool:
    """Whether ``width`` scores for every slot of [n, m, ...] may be held at once."""
    return math.prod(slots.shape[:2]) * width <= scores_held(slots.device)


def scores_held(device: torch.device) -> int:
    """How many scores of training may be held at once, in float32: 256 MiB, and on a GPU a 64th of its memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // (64 * 4)
    return 2**26


def _dot(table: Tensor, vector: Tensor) -> Tensor:
    """[c, x] or [..., c, x] with [..., x] → [..., c]."""
    return F.linear(vector, table) if table.ndim == 2 else (table @ vector[..., None]).squeeze(-1)


def _mean(table: Tensor, weights: Tensor) -> Tensor:
    """[c, x] or [..., c, x] with [..., c] → [..., x]."""
    return weights @ table if table.ndim == 2 else (weights[..., None, :] @ table).squeeze(-2)


@lru_cache(maxsize=4)
def _all_codes(vocab_size: int, num_bits: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the same tensor serves training
        return encode(torch.arange(vocab_size, device=device), num_bits, check=False)
