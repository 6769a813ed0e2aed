"""The two heads: the diffusion head (network and readout), and the vocabulary softmax as the baseline."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.diffusion.posterior import Posterior
from bitlm.model.config import BitLMConfig
from bitlm.model.network import HeadNetwork
from bitlm.model.readouts import READOUTS
from bitlm.model.state import BlockState, HeadConstants


class DiffusionHead(nn.Module):
    """(A_t, t; C) → the posterior of each slot's token. ``denoiser`` chooses the readout, ``context_path="direct"``
    adds a linear map from the whole block's C to the log-odds."""

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        m, B, D = config.block_size, config.num_bits, config.hidden_size
        self.null_context = nn.Parameter(torch.empty(m, D))
        self.network = HeadNetwork(config)
        self.readout = READOUTS[config.diffusion_head.denoiser](config)
        self.context_log_odds = None
        if config.diffusion_head.context_path == "direct":
            self.context_log_odds = nn.Linear(m * D, m * B)

    def constants(self, embedding: Tensor) -> HeadConstants:
        """What no context changes, from the backbone's embedding matrix [rows, D]."""
        return self.readout.constants(embedding)

    def sampling_constants(self, embedding: Tensor, t_K1m: Tensor, guided: bool) -> HeadConstants:
        """The same for a sampler whose K steps have the noise levels ``t``."""
        constants = self.constants(embedding)
        times = torch.stack([self.network.embed_time(t) for t in t_K1m])
        null = None
        if guided:
            context_1mD = self.null_context[None]
            null = self.readout.prepare_null(self._block(context_1mD), context_1mD, constants)
        return replace(constants, times=times, null=null)

    def prepare(self, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        """C → what n blocks need of it, to train on."""
        return self.readout.prepare(self._block(context_nmD), context_nmD, constants)

    def prepare_sampling(self, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        """C → what all steps of a sampler need of it, for n blocks; with guidance n null blocks follow them."""
        return self.readout.prepare_sampling(self._block(context_nmD), context_nmD, constants)

    def forward(
        self, noisy_nmB: Tensor, t: Tensor, constants: HeadConstants, block: BlockState, time: Tensor | None = None
    ) -> Posterior:
        """A_t [n, m, B] float32, t [n or 1, m or 1] float32 → p(y | A_t, C) of the m slots.

        ``time`` is ``network.embed_time(t)``, for a sampler, whose levels come back in every block.
        """
        time = self.network.embed_time(t) if time is None else time
        network = partial(self.network, noisy_nmB, time, block.condition)
        return self.readout(network, self.readout.evidence(noisy_nmB, t, block), constants, block)

    def _block(self, context_nmD: Tensor) -> BlockState:
        log_odds = None
        if self.context_log_odds is not None:
            log_odds = self.context_log_odds(context_nmD.flatten(1)).float().unflatten(1, (context_nmD.shape[1], -1))
        return BlockState(self.network.condition(context_nmD), log_odds)


class LanguageModelHead(nn.Module):
    """The vocabulary softmax; without its own matrix when the embedding serves as the output (tied)."""

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.output = None
        if not config.tie_word_embeddings:
            self.output = nn.Linear(config.hidden_size, config.embedding_rows, bias=False)

    def forward(self, context: Tensor, embedding: Tensor) -> Tensor:
        """[..., D] → logits [..., V] float32; rows that only pad the matrix take no part."""
        if self.output is not None:
            return self.output(context)[..., : self.vocab_size].float()
        return F.linear(context, embedding[: self.vocab_size]).float()
