"""log p of given tokens under a softmax over all V, whose scores are sums of products with tables of a row per token.

No matrix of all k × V scores is made. The vocabulary is taken in chunks, as in Cut Cross-Entropy (arXiv 2411.09009):
the forward pass adds up exp(scores) chunk by chunk. The backward pass makes of a chunk the gradient of its rows, which
is written once, and its part of the vectors' gradient. The scores of the chunks are kept between the two where they
fit, and computed again where they do not, with the same result.
Shapes: k slots, c tokens of a chunk, x columns of a table.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_TOKENS = 1024  # at least, so that products stay large; their scores take as much as the slots' hidden states


def token_log_prob(terms: Sequence[tuple[Tensor, Tensor]], bias_V: Tensor, ids_k: Tensor, held: int) -> Tensor:
    """log softmax(Σ table·vector + bias)[ids], [k] float32, for ``terms`` of tables [V or more, x] and vectors [k, x].

    Rows after the first V take no part. A table is read in the precision of its vectors; the sum is of float32.
    ``held`` is how many scores may be kept for the backward pass; a chunk has an eighth of them.
    """
    flat = [tensor for table, vector in terms for tensor in (table.to(vector.dtype), vector)]
    with torch.autocast(ids_k.device.type, enabled=False):
        return _TokenLogProb.apply(bias_V, ids_k, held, *flat)


class _TokenLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, bias: Tensor, ids: Tensor, held: int, *flat: Tensor) -> Tensor:
        ctx.width = max(CHUNK_TOKENS, held // 8 // max(1, len(ids)))
        keep = len(ids) * len(bias) <= held and any(ctx.needs_input_grad)
        kept, log_sum, own = [], bias.new_full(ids.shape, -torch.inf), bias.new_zeros(ids.shape)
        for chunk in _chunks(len(bias), ctx.width):
            scores_kc = _scores(flat, bias, chunk)
            log_sum = torch.logaddexp(log_sum, scores_kc.logsumexp(-1))
            place, inside = _places(ids, chunk)
            own = torch.where(inside, scores_kc.gather(1, place[:, None]).squeeze(1), own)
            if keep:
                kept.append(scores_kc)
        ctx.save_for_backward(bias, ids, log_sum, *flat, *kept)
        ctx.count = len(flat)
        return own - log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_k: Tensor) -> tuple[Tensor | None, ...]:
        bias, ids, log_sum, *rest = ctx.saved_tensors
        flat, kept = rest[: ctx.count], rest[ctx.count :]
        wanted = ctx.needs_input_grad[3:]
        found = [None] * ctx.count
        for i in range(0, ctx.count, 2):
            table, vector = flat[i], flat[i + 1]
            if wanted[i]:
                found[i] = torch.empty_like(table)
                found[i][len(bias) :] = 0
            if wanted[i + 1]:
                found[i + 1] = torch.zeros_like(vector, dtype=bias.dtype)
        for number, chunk in enumerate(_chunks(len(bias), ctx.width)):
            scores_kc = kept[number] if kept else _scores(flat, bias, chunk)
            of_scores_kc = (scores_kc - log_sum[:, None]).exp_().mul_(-gradient_k[:, None])
            place, inside = _places(ids, chunk)
            of_scores_kc.scatter_add_(1, place[:, None], torch.where(inside, gradient_k, 0)[:, None])
            for i in range(0, ctx.count, 2):
                table_cx, vector_kx = flat[i][chunk], flat[i + 1]
                part_kc = of_scores_kc.to(vector_kx.dtype)
                if wanted[i]:
                    torch.mm(part_kc.T, vector_kx, out=found[i][chunk])
                if wanted[i + 1]:
                    found[i + 1] += part_kc @ table_cx
        of_flat = (None if value is None else value.to(tensor.dtype) for value, tensor in zip(found, flat, strict=True))
        return None, None, None, *of_flat


def _chunks(V: int, width: int) -> Iterator[slice]:
    for start in range(0, V, width):
        yield slice(start, min(start + width, V))


def _scores(flat: Sequence[Tensor], bias: Tensor, chunk: slice) -> Tensor:
    """[k, c] in the bias's precision."""
    scores_kc = None
    for table, vector in zip(flat[::2], flat[1::2], strict=True):
        part_kc = (vector @ table[chunk].T).to(bias.dtype)
        scores_kc = part_kc if scores_kc is None else scores_kc.add_(part_kc)
    return scores_kc.add_(bias[chunk])


def _places(ids: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """The place of each slot's token in the chunk [k], any where it is not ``inside``."""
    inside = (ids >= chunk.start) & (ids < chunk.stop)
    return torch.where(inside, ids - chunk.start, 0), inside
