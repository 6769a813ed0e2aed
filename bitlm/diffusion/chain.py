"""The chain: the code length of one-by-one sampling, in nats, for every head.

    -Σ_i log p(y_i | slots before i clean, the others pure noise, C)

It is exact where the head ignores pure noise, as one with causal attention inside the block does. For others it holds
for the given noise, and its mean over the noise is an upper bound (Jensen's inequality).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from bitlm.batch import Batch
from bitlm.config import DiffusionConfig
from bitlm.diffusion.bound import Bound, ScoredModel, combine
from bitlm.diffusion.noise import NO_OFFSETS, BlockShape, Noise, Stream, generator
from bitlm.errors import ConfigError

IN_ONE_PASS = DiffusionConfig(loss="token", chain_slots=1, noise_share=0)
PREFIX_BY_PREFIX = DiffusionConfig(loss="token")


@torch.no_grad()
def chain_nats(model: ScoredModel, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """Per sequence of the batch: nats of the tokens that carry loss, summed for each slot of the blocks [b, m]
    (float64), and the number of these tokens [b, m].

    Pure noise is keyed by (seed, index). Calls the model as a whole, so it works on a sharded model; restores the
    model's mode. Raises ConfigError for the LM head, or if the number of indices is not that of the sequences.
    """
    config = model.config
    if config.head != "diffusion":
        raise ConfigError("the chain is the diffusion head's; the LM head's cross-entropy is exact")
    if len(batch.indices) != len(batch.input_ids):
        raise ConfigError(f"{len(batch.indices)} indices for {len(batch.input_ids)} sequences: give one for each")
    shape = BlockShape(batch.input_ids.shape[1] // config.block_size, config.block_size, config.num_bits)
    in_one_pass = config.diffusion_head.attention == "causal"
    noise = prefix_noise(seed, batch.indices, shape, 0 if in_one_pass else shape.m)
    training = model.training
    model.eval()
    output = model(
        batch.input_ids,
        batch.attention_mask,
        noise=noise.to(batch.input_ids.device),
        loss_tokens=batch.loss_tokens,
        diffusion=IN_ONE_PASS if in_one_pass else PREFIX_BY_PREFIX,
    )
    model.train(training)
    loss_bNdm = output.slot_loss.double()
    nats_bNm = loss_bNdm.squeeze(2) if in_one_pass else loss_bNdm.diagonal(dim1=2, dim2=3)
    return (nats_bNm * output.in_loss).sum(1), output.in_loss.sum(1)


def chain_per_token(model: ScoredModel, batches: Iterable[Batch], seed: int = 0) -> Bound:
    """The chain in nats per token. Noise belongs to (seed, index), so how sequences are put into batches changes
    nothing.

    Raises ConfigError as ``chain_nats``, and if no token carries loss.
    """
    parts = [chain_nats(model, batch, seed) for batch in batches]
    return combine(torch.cat([nats for nats, _ in parts]), torch.cat([tokens for _, tokens in parts]))


def prefix_noise(seed: int, indices: Sequence[int], shape: BlockShape, prefixes: int) -> Noise:
    """A draw for each of the first prefixes of a block: in draw p the slots before p are clean, the others pure noise,
    which is the same in all draws. ``Noise.t`` is [b, N, prefixes, m]."""
    N, m, B = shape
    eps_bNmB = np.empty((len(indices), N, m, B), dtype=np.float32)
    for row, index in enumerate(indices):
        generator(seed, Stream.BOUND, index, 0).standard_normal(out=eps_bNmB[row], dtype=np.float32)
    eps_bNdmB = torch.from_numpy(eps_bNmB)[:, :, None].expand(-1, -1, prefixes, -1, -1)
    t_dm = torch.ones(m, m).triu()[:prefixes]
    blocks = torch.zeros(len(indices), N, dtype=torch.bool)
    return Noise(eps_bNdmB, t_dm.expand(len(indices), N, -1, -1), blocks, ~blocks, NO_OFFSETS)
