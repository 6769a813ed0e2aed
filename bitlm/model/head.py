"""The two heads: the diffusion head (network and readout), and the vocabulary softmax as the baseline."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.codes import encode
from bitlm.diffusion.posterior import Posterior
from bitlm.model.config import BitLMConfig
from bitlm.model.network import HeadNetwork, posterior_mean_input, visible_slots
from bitlm.model.prefix import KeptSlots, PrefixPass
from bitlm.model.readouts import READOUTS
from bitlm.model.state import BlockState, HeadConstants
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
        """The same for a sampler whose calls have the noise levels ``t``."""
        constants = self.constants(embedding)
        times = torch.stack([self.network.embed_time(t) for t in t_K1m])
        null = None
        if guided:
            null = self.readout.prepare_null(self.prepare(self.null_context[None]), constants)
        return replace(constants, times=times, null=null)

    @property
    def keeps_slots(self) -> bool:
        """Whether keys and values of clean slots can be kept, which ``behind_prefix`` needs."""
        return self.network.causal

    def walk_constants(self, embedding: Tensor, guided: bool) -> HeadConstants:
        """The same for ``behind_prefix``, block by block."""
        null = self.prepare(self.null_context[None]) if guided else None
        ends, network = self._ends(), self.network
        modulations = network.modulate(ends, None) if network.path == "attention" else None
        constants = self.constants(embedding, tables=self.readout.scores_once)
        return replace(constants, ends=ends, modulations=modulations, null=null)

    @property
    def self_conditioning(self) -> bool:
        """Whether ``forward`` can be told an estimate."""
        return self.network.estimate is not None

    def prepare(self, context_nmD: Tensor) -> BlockState:
        """C → what n blocks need of it."""
        network, log_odds = self.network, None
        if self.context_log_odds is not None:
            log_odds = self.context_log_odds(context_nmD.flatten(1)).float().unflatten(1, (context_nmD.shape[1], -1))
        block = BlockState(network.condition(context_nmD), network.remember(context_nmD), log_odds)
        return self.readout.prepare(block, context_nmD)

    def prepare_sampling(self, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        """C → what all calls of a sampler need of it, for n blocks; with guidance n null blocks follow them."""
        block = self.prepare(context_nmD)
        if constants.ends is None:
            return self.readout.prepare_sampling(block, constants)
        if constants.null is not None:
            block = block.concatenate(constants.null.repeat(len(context_nmD)))
        return self.readout.codebook.add_scores(block, constants) if self.readout.scores_once else block

    def forward(
        self,
        noisy_nmB: Tensor,
        t: Tensor,
        constants: HeadConstants,
        block: BlockState,
        time: Tensor | None = None,
        estimate: Tensor | None = None,
    ) -> Posterior:
        """A_t [n, m, B] float32, t [n or 1, m or 1] float32 → p(y | A_t, C) of the m slots.

        ``time`` is ``network.embed_time(t)``, for a sampler, whose levels come back in every block. ``estimate`` is an
        earlier Â_0 [n, m, B], for a head with ``self_conditioning`` (Analog Bits, arXiv 2208.04202); None is 0.
        """
        network = self.network
        time = network.embed_time(t) if time is None else time
        shown_nmB, mask, told = noisy_nmB, None, None
        if network.causal:
            t_nm = t.expand(-1, noisy_nmB.shape[1])
            shown_nmB, mask, told = posterior_mean_input(noisy_nmB, t_nm), visible_slots(t_nm), t_nm < 1

        def states(features_nmH: Tensor | None) -> Tensor:
            x_nmH = network.input(shown_nmB.to(block.condition.dtype)) + network.slot_embedding
            if estimate is not None:
                x_nmH = x_nmH + network.estimate(estimate.to(block.condition.dtype))
            x_nmH = x_nmH if features_nmH is None else x_nmH + features_nmH
            return network(x_nmH, network.modulate(time, block.condition), block.condition, block.memory, mask)

        return self.readout(states, self.readout.evidence(noisy_nmB, t, block), constants, block, told)

    def behind_prefix(
        self,
        ids_nc: Tensor,
        shown: PrefixPass,
        constants: HeadConstants,
        block: BlockState,
        kept: KeptSlots | None = None,
    ) -> Posterior:
        """p(y | clean prefix, C) of slots of pure noise, each behind a prefix of the block's tokens, with causal
        attention inside the block: the answer of ``forward`` for levels 0 and 1, in one pass for all queries.

        ``ids`` are those of the new clean slots, which are added to ``kept``.
        """
        network, (n, c), q = self.network, ids_nc.shape, len(shown.queries)
        known_ncR = self.readout.known(ids_nc, constants)
        if constants.codes is None:
            codes_ncB = encode(ids_nc, network.input.in_features, check=False)
        else:
            codes_ncB = F.embedding(ids_nc, constants.codes)
        x_ncH = network.input(codes_ncB.to(block.condition.dtype))
        if known_ncR is not None:
            x_ncH = x_ncH + self.readout.codebook.feature(known_ncR)
        x_nsH = torch.cat([x_ncH, network.input.bias.expand(n, q, -1)], dim=1)
        x_nsH = x_nsH + F.embedding(shown.slots, network.slot_embedding)
        condition_nsH = block.condition.index_select(1, shown.slots)
        if constants.modulations is not None:
            modulations = [of_ends.index_select(1, shown.levels) for of_ends in constants.modulations]
        else:
            ends = self._ends() if constants.ends is None else constants.ends
            modulations = network.modulate(ends.index_select(1, shown.levels), condition_nsH)
        hidden_nsH = network(x_nsH, modulations, condition_nsH, block.memory, shown.mask, kept, keep=c)
        known_npR = known_ncR if kept is None else kept.add(c, known_ncR)
        return self.readout.behind_prefix(hidden_nsH[:, c:], known_npR, shown, constants, block)

    def walk(self, constants: HeadConstants, block: BlockState, guided: bool) -> "HeadWalk":
        """Along the blocks, with ``walk_constants``."""
        return HeadWalk(self, constants, block, guided)

    def _ends(self) -> Tensor:
        """The embedding of t = 0 and of t = 1, [1, 2, H]."""
        return self.network.embed_time(torch.tensor([[0.0, 1.0]], device=self.null_context.device))

    def next_token(self, states_nsD: Tensor, embedding: Tensor) -> Posterior:
        """The codebook's scores of states of the backbone alone, as of a softmax."""
        constants = self.readout.constants(embedding, tables=False)
        return TokenPosterior(self.readout.codebook, constants, BlockState(states_nsD, query=states_nsD))


class HeadWalk:
    """From the first slot of n blocks to the last, as ``bitlm.diffusion.sampler.Walk``: a call computes only the slots
    that landed last and those that land now."""

    def __init__(self, head: DiffusionHead, constants: HeadConstants, block: BlockState, guided: bool) -> None:
        self._head, self._constants, self._block, self._guided = head, constants, block, guided
        self._kept = KeptSlots()

    def __call__(self, ids_nc: Tensor, count: int) -> Posterior:
        if self._guided:
            ids_nc = torch.cat([ids_nc, ids_nc])
        m = self._block.condition.shape[1]
        shown = PrefixPass.following(m, self._kept.count, ids_nc.shape[1], count, ids_nc.device)
        return self._head.behind_prefix(ids_nc, shown, self._constants, self._block, self._kept)


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
