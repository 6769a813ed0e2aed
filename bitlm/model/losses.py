"""The losses of the diffusion head: from C and tokens of blocks to a loss for each slot.

Shape suffixes: b sequences, N blocks of a sequence, n blocks in a row, m slots, d noise draws, q queries behind clean
prefixes, e extra offsets at which blocks begin.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitlm.codes import encode
from bitlm.config import DiffusionConfig
from bitlm.diffusion.loss import bit_loss, to_codes
from bitlm.diffusion.noise import Noise
from bitlm.diffusion.process import corrupt
from bitlm.model.head import DiffusionHead
from bitlm.model.prefix import PrefixPass
from bitlm.model.state import BlockState, HeadConstants


@dataclass(frozen=True)
class Sequences:
    """Of b sequences, in blocks as generation begins them: C [b, N, m, D], ids [b, N, m], ``in_loss`` [b, N, m] True
    for tokens that carry loss, ``visible`` [b, N, m] False on padding (None: there is none)."""

    context: Tensor
    ids: Tensor
    in_loss: Tensor
    visible: Tensor | None


def slot_losses(
    head: DiffusionHead,
    embedding: Tensor,
    context_nmD: Tensor,
    targets_nm: Tensor,
    noise: Noise,
    diffusion: DiffusionConfig,
) -> Tensor:
    """C, ids and noise of the same n blocks → [n, d, m]; one draw where there is a chain: the mean over the noise draws
    of the blocks that learn from them is added to its loss, which counts for one of the ``block_offsets``."""
    null = head.null_context.to(context_nmD.dtype)
    context_nmD = torch.where(noise.drop[:, None, None], null, context_nmD)
    constants = head.constants(embedding, tables=noise.t.shape[1] > 0)
    block = head.prepare(context_nmD)
    if diffusion.chain_slots == 0:
        return _noise_losses(head, block, constants, targets_nm, noise, diffusion)
    losses_nm = _chain_losses(head, block, constants, targets_nm, diffusion.chain_slots) / diffusion.block_offsets
    chosen = noise.learn.nonzero().flatten()
    if noise.t.shape[1]:  # also for no block: all ranks of a sharded head must make the same passes
        further_ndm = _noise_losses(
            head, block.select(chosen), constants, targets_nm[chosen], noise.select(chosen), diffusion
        )
        losses_nm = losses_nm.index_add(0, chosen, further_ndm.mean(1))
    return losses_nm[:, None]


def shifted_losses(
    head: DiffusionHead, embedding: Tensor, sequences: Sequences, offsets_be: Tensor, diffusion: DiffusionConfig
) -> Tensor:
    """The chain of blocks that begin ``offsets`` tokens after those of generation, the sum over the tokens in the loss.
    Behind a causal mask the m states before any token are a context like those before a block. As everywhere, a block
    with padding carries no loss."""
    b, N, m = sequences.ids.shape
    places = torch.arange((N - 1) * m, device=offsets_be.device)
    rows_b11 = torch.arange(b, device=offsets_be.device)[:, None, None]
    places_bep = offsets_be[..., None] + places

    def of_blocks(tensor_bNm: Tensor) -> Tensor:
        """[b, N, m, ...] → [n, m, ...] of the shifted blocks"""
        shifted = tensor_bNm.flatten(1, 2)[rows_b11, places_bep].flatten(0, 2)
        return shifted.unflatten(0, (len(shifted) // m, m))

    in_loss_nm = of_blocks(sequences.in_loss)
    if sequences.visible is not None:
        in_loss_nm = in_loss_nm & of_blocks(sequences.visible).all(-1, keepdim=True)
    chosen = in_loss_nm.any(-1).nonzero().flatten()
    block, targets_nm = head.prepare(of_blocks(sequences.context)[chosen]), of_blocks(sequences.ids)[chosen]
    constants = head.constants(embedding, tables=False)
    losses_nm = _chain_losses(head, block, constants, targets_nm, diffusion.chain_slots)
    return torch.where(in_loss_nm[chosen], losses_nm, 0).sum() / diffusion.block_offsets


def next_token_losses(head: DiffusionHead, embedding: Tensor, sequences: Sequences) -> Tensor:
    """-log p of the tokens that begin no block under the codebook's scores of the state before each, the sum over those
    in the loss. A causal mask shows a state nothing later."""
    states = sequences.context[:, 1:, :-1]  # of the places of the block before, each behind its token
    targets, counted = sequences.ids[:, :-1, 1:], sequences.in_loss[:, :-1, 1:]
    log_p = head.next_token(states.flatten(0, 1), embedding).log_prob(targets.flatten(0, 1))
    return torch.where(counted, -log_p.view(targets.shape), 0).sum()


def _noise_losses(
    head: DiffusionHead,
    block: BlockState,
    constants: HeadConstants,
    targets_nm: Tensor,
    noise: Noise,
    diffusion: DiffusionConfig,
) -> Tensor:
    """[n, d, m]"""
    draws = noise.t.shape[1]
    clean_n1mB = encode(targets_nm, noise.eps.shape[-1], check=False)[:, None]
    noisy_ndmB = corrupt(clean_n1mB, noise.eps, noise.t[..., None])
    given = noisy_ndmB.flatten(0, 1), noise.t.flatten(0, 1), constants, block.repeat(draws)
    estimate_nmB = None
    if head.self_conditioning and noise.estimated is not None:
        estimate_nmB = _first_estimates(head, *given, noise.estimated.flatten())
    posterior = head(*given, estimate=estimate_nmB)
    if diffusion.loss == "token":
        return -posterior.log_prob(targets_nm.repeat_interleave(draws, dim=0)).view(noisy_ndmB.shape[:-1])
    return bit_loss(posterior.log_odds().view(noisy_ndmB.shape), clean_n1mB, noise.t[..., None], diffusion)


@torch.no_grad()
def _first_estimates(
    head: DiffusionHead,
    noisy_nmB: Tensor,
    t: Tensor,
    constants: HeadConstants,
    block: BlockState,
    chosen_n: Tensor,
) -> Tensor:
    """Â_0 of a first pass for the chosen blocks, 0 for the others, [n, m, B]. The pass is made for no block too: every
    rank must take part in it where the head's layers are sharded."""
    rows = chosen_n.nonzero().flatten()
    found = head(noisy_nmB[rows], t[rows], constants, block.select(rows))
    return torch.zeros_like(noisy_nmB).index_copy(0, rows, to_codes(found.log_odds()))


def _chain_losses(
    head: DiffusionHead, block: BlockState, constants: HeadConstants, targets_nm: Tensor, ahead: int
) -> Tensor:
    """-log p of each slot, the mean over the clean prefixes that have it among the ``ahead`` next ones, [n, m]."""
    m = targets_nm.shape[1]
    shown = PrefixPass.every(m, ahead, targets_nm.device)
    nll_nq = -head.behind_prefix(targets_nm[:, : m - 1], shown, constants, block).log_prob(targets_nm[:, shown.queries])
    counts_m = torch.bincount(shown.queries, minlength=m)
    return nll_nq.new_zeros(targets_nm.shape).index_add(1, shown.queries, nll_nq) / counts_m
