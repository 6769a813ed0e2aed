"""The two heads: the diffusion head (network and readout), and the vocabulary softmax as the baseline."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.codes import encode
from bitlm.diffusion.posterior import Posterior
from bitlm.model.config import BitLMConfig
from bitlm.model.network import HeadNetwork, KeptSlots, posterior_mean_input, prefix_mask, visible_slots
from bitlm.model.readouts import READOUTS
from bitlm.model.state import BlockState, HeadConstants, Queries
from bitlm.model.token_posterior import TokenPosterior


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

    def constants(self, embedding: Tensor, tables: bool = True) -> HeadConstants:
        """What no context changes, from the backbone's embedding matrix [rows, D]. Without ``tables`` it serves
        ``behind_prefix`` alone."""
        direct = self.context_log_odds is not None
        return self.readout.constants(embedding, tables or direct)

    def sampling_constants(self, embedding: Tensor, t_K1m: Tensor, guided: bool) -> HeadConstants:
        """The same for a sampler whose K steps have the noise levels ``t``."""
        constants = self.constants(embedding)
        times = torch.stack([self.network.embed_time(t) for t in t_K1m])
        null = None
        if guided:
            null = self.readout.prepare_null(self.prepare(self.null_context[None]), constants)
        return replace(constants, times=times, null=null)

    def prepare(self, context_nmD: Tensor) -> BlockState:
        """C → what n blocks need of it."""
        network, log_odds = self.network, None
        if self.context_log_odds is not None:
            log_odds = self.context_log_odds(context_nmD.flatten(1)).float().unflatten(1, (context_nmD.shape[1], -1))
        block = BlockState(network.condition(context_nmD), network.remember(context_nmD), log_odds)
        return self.readout.prepare(block, context_nmD)

    def prepare_sampling(self, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        """C → what all steps of a sampler need of it, for n blocks; with guidance n null blocks follow them."""
        return self.readout.prepare_sampling(self.prepare(context_nmD), constants)

    def forward(
        self, noisy_nmB: Tensor, t: Tensor, constants: HeadConstants, block: BlockState, time: Tensor | None = None
    ) -> Posterior:
        """A_t [n, m, B] float32, t [n or 1, m or 1] float32 → p(y | A_t, C) of the m slots.

        ``time`` is ``network.embed_time(t)``, for a sampler, whose levels come back in every block.
        """
        network = self.network
        time = network.embed_time(t) if time is None else time
        shown_nmB, mask, told = noisy_nmB, None, None
        if network.causal:
            t_nm = t.expand(-1, noisy_nmB.shape[1])
            shown_nmB, mask, told = posterior_mean_input(noisy_nmB, t_nm), visible_slots(t_nm), t_nm < 1

        def states(features_nmH: Tensor | None) -> Tensor:
            x_nmH = network.embed(shown_nmB, block.condition, slice(None), features_nmH)
            return network(x_nmH, time, block.condition, block.memory, mask)

        return self.readout(states, self.readout.evidence(noisy_nmB, t, block), constants, block, told)

    def behind_prefix(
        self,
        ids_nc: Tensor,
        queries: Queries,
        constants: HeadConstants,
        block: BlockState,
        kept: KeptSlots | None = None,
    ) -> Posterior:
        """p(y | clean prefix, C) of slots of pure noise, each behind a prefix of the block's tokens, with causal
        attention inside the block: the answer of ``forward`` for levels 0 and 1, in one pass for all queries.

        ``ids`` are the first c tokens of the block or, with ``kept``, the next c after those, which are added to it.
        """
        network, c, q = self.network, ids_nc.shape[1], len(queries.slots)
        first = 0 if kept is None else kept.count
        slots = torch.cat([torch.arange(first, first + c, device=ids_nc.device), queries.slots])
        codes_nsB = F.pad(encode(ids_nc, network.input.in_features, check=False), (0, 0, 0, q))
        known_npR = self.readout.known(ids_nc, constants)
        features_nsH = None
        if known_npR is not None:
            features_nsH = F.pad(self.readout.codebook.feature(known_npR), (0, 0, 0, q))
        condition_nsH = block.condition[:, slots]
        ends = constants.ends
        if ends is None:
            ends = network.embed_time(torch.tensor([[0.0, 1.0]], device=ids_nc.device))
        time_1sH = torch.cat([ends[:, :1].expand(-1, c, -1), ends[:, 1:].expand(-1, q, -1)], dim=1)
        x_nsH = network.embed(codes_nsB, condition_nsH, slots, features_nsH)
        mask = prefix_mask(first, c, queries)
        hidden_nqH = network(x_nsH, time_1sH, condition_nsH, block.memory, mask, kept, keep=c)[:, c:]
        if kept is not None:
            known_npR = kept.add(c, known_npR)
        return self.readout.behind_prefix(hidden_nqH, known_npR, queries, constants, block)

    def next_token(self, states_nsD: Tensor, embedding: Tensor) -> Posterior:
        """The codebook's scores of states of the backbone alone, as of a softmax."""
        constants = self.readout.constants(embedding, tables=False)
        return TokenPosterior(self.readout.codebook, constants, BlockState(states_nsD, query=states_nsD))


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
