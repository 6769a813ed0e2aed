"""From hidden states to the posterior over tokens: one readout for each kind of denoiser.

A readout is called with the network as a function (features that are added to its input → hidden states [n, m, H]),
the evidence on the bits, what the head has computed once and, with causal attention inside the block, which slots are
``told`` of anything (t < 1) [n or 1, m].
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from bitlm.diffusion.posterior import BitPosterior, Posterior
from bitlm.diffusion.process import matched_filter
from bitlm.model.codebook import Codebook, bit_log_odds, mean_row, posterior_scores
from bitlm.model.config import BitLMConfig
from bitlm.model.prefix import PrefixPass
from bitlm.model.state import BlockState, HeadConstants
from bitlm.model.token_posterior import TokenPosterior

Network = Callable[..., Tensor]


class DirectReadout(nn.Module):
    """The network's output is the log-odds, added to those read from C on the direct context path."""

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        self.codebook: Codebook | None = None
        self.vocab_size = config.vocab_size
        self.output = nn.Linear(config.diffusion_head.width, self.num_outputs(config))

    @property
    def scores_once(self) -> bool:
        """Whether a walk scores all tokens of a block's slots at once, before its first call."""
        return False

    @staticmethod
    def num_outputs(config: BitLMConfig) -> int:
        """Columns of the output map."""
        return config.num_bits

    def constants(self, embedding: Tensor, tables: bool = True) -> HeadConstants:
        """From the backbone's embedding matrix [rows, D]; ``tables`` as in ``Codebook.constants``."""
        return HeadConstants()

    def prepare(self, block: BlockState, context_nmD: Tensor) -> BlockState:
        """Add what the readout computes of C once."""
        return block

    def prepare_null(self, block: BlockState, constants: HeadConstants) -> BlockState:
        """For the null condition of guidance, once per generation."""
        return block

    def prepare_sampling(self, block: BlockState, constants: HeadConstants) -> BlockState:
        """For the steps of a sampler; with guidance n null blocks follow the n blocks."""
        return block if constants.null is None else block.concatenate(constants.null.repeat(len(block.condition)))

    def evidence(self, noisy_nmB: Tensor, t: Tensor, block: BlockState) -> Tensor | None:
        """The log-odds of the bits that need no network, [n, m, B] float32. t [n or 1, m or 1]."""
        return block.context_log_odds

    def forward(
        self,
        network: Network,
        evidence: Tensor | None,
        constants: HeadConstants,
        block: BlockState,
        told: Tensor | None,
    ) -> Posterior:
        log_odds = self.output(network(None)).float()
        return BitPosterior(log_odds if evidence is None else log_odds + evidence, self.vocab_size)

    def known(self, ids_np: Tensor, constants: HeadConstants) -> Tensor | None:
        """The mean rows R̄ of clean slots with these tokens, [n, p, R]; None for a readout without a codebook."""
        return None

    def behind_prefix(
        self,
        hidden_nqH: Tensor,
        known_npR: Tensor | None,
        shown: PrefixPass,
        constants: HeadConstants,
        block: BlockState,
    ) -> Posterior:
        """The posterior of q slots of pure noise, each behind its clean prefix, whose rows are ``known``."""
        log_odds = self.output(hidden_nqH).float()
        if block.context_log_odds is not None:
            log_odds = log_odds + block.context_log_odds[:, shown.queries]
        return BitPosterior(log_odds, self.vocab_size)


class MatchedFilterReadout(DirectReadout):
    """The network's output is added to the log-odds of independent fair bits given A_t."""

    def evidence(self, noisy_nmB: Tensor, t: Tensor, block: BlockState) -> Tensor:
        of_fair_bits = matched_filter(noisy_nmB, t[..., None])
        return of_fair_bits if block.context_log_odds is None else of_fair_bits + block.context_log_odds


class CodebookPriorReadout(MatchedFilterReadout):
    """The network's output is added to the log-odds of the codebook's mean code, in which it has no part."""

    coupled = False

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__(config)
        self.codebook = Codebook(config, self.coupled)
        self.candidates = config.diffusion_head.codebook_candidates

    def constants(self, embedding: Tensor, tables: bool = True) -> HeadConstants:
        return self.codebook.constants(embedding)

    def prepare(self, block: BlockState, context_nmD: Tensor) -> BlockState:
        return self.codebook.add_query(block, context_nmD)

    def prepare_null(self, block: BlockState, constants: HeadConstants) -> BlockState:
        """With the scores of all V tokens."""
        return self.codebook.keep_likeliest(block, constants, self.codebook.vocab_size)

    def prepare_sampling(self, block: BlockState, constants: HeadConstants) -> BlockState:
        """Of a large vocabulary the codebook keeps the ``codebook_candidates`` tokens per slot that are likeliest given
        C, the same for both branches of guidance; p is exact among them."""
        block = self.codebook.keep_likeliest(block, constants, self.candidates)
        if constants.null is None:
            return block
        null = constants.null.repeat(len(block.condition))
        if block.tokens is not None:
            null = replace(null, scores=null.scores.gather(-1, block.tokens), **block.own_tokens())
        return block.concatenate(null)

    def forward(
        self, network: Network, evidence: Tensor, constants: HeadConstants, block: BlockState, told: Tensor | None
    ) -> Posterior:
        def of_codebook(scores: Tensor, rows: Tensor, codes: Tensor, evidence: Tensor) -> Tensor:
            return bit_log_odds(posterior_scores(scores, rows, codes, evidence), codes)

        block, mean_rows_nmR = self._mean_rows(evidence, constants, block, told)
        log_odds = self.output(network(self.codebook.feature(mean_rows_nmR))).float()
        log_odds = log_odds + self.codebook.over_tokens(of_codebook, constants, block, evidence)
        return BitPosterior(log_odds, self.vocab_size)

    def known(self, ids_np: Tensor, constants: HeadConstants) -> Tensor:
        return self.codebook.rows_of(ids_np, constants)

    def behind_prefix(
        self, hidden_nqH: Tensor, known_npR: Tensor, shown: PrefixPass, constants: HeadConstants, block: BlockState
    ) -> Posterior:
        block = block.of_slots(shown.queries)
        prior = TokenPosterior(self.codebook, constants, block, block.context_log_odds)
        return BitPosterior(self.output(hidden_nqH).float() + prior.log_odds(), self.vocab_size)

    def _mean_rows(
        self, evidence: Tensor, constants: HeadConstants, block: BlockState, told: Tensor | None
    ) -> tuple[BlockState, Tensor]:
        """The block with its scores, and R̄ [n, m, R], 0 where a slot is told of nothing."""
        block = self.codebook.add_scores(block, constants)
        mean_rows_nmR = self.codebook.over_tokens(mean_row, constants, block, evidence)
        return block, mean_rows_nmR if told is None else mean_rows_nmR * told[..., None]


class CodebookReadout(CodebookPriorReadout):
    """The network's output is part of p, as U·h in the correction a = U·h + Σ T·R̄, which couples the slots."""

    coupled = True

    @property
    def scores_once(self) -> bool:
        """Each call then reads R, which is narrower than E, and E is read once for all of them."""
        return self.codebook.low_rank is not None

    @staticmethod
    def num_outputs(config: BitLMConfig) -> int:
        return config.diffusion_head.codebook_rank or config.hidden_size

    def constants(self, embedding: Tensor, tables: bool = True) -> HeadConstants:
        return self.codebook.constants(embedding, tables)

    def forward(
        self, network: Network, evidence: Tensor, constants: HeadConstants, block: BlockState, told: Tensor | None
    ) -> Posterior:
        block, mean_rows_nmR = self._mean_rows(evidence, constants, block, told)
        correction = self.output(network(self.codebook.feature(mean_rows_nmR))) + self.codebook.couple(mean_rows_nmR)
        return TokenPosterior(self.codebook, constants, block, evidence, correction)

    def behind_prefix(
        self, hidden_nqH: Tensor, known_npR: Tensor, shown: PrefixPass, constants: HeadConstants, block: BlockState
    ) -> Posterior:
        """Where there are no scores, E_y·q + R_y·a is one product, as that of a softmax."""
        block = block.of_slots(shown.queries)
        correction = self.output(hidden_nqH) + self.codebook.couple_before(known_npR, shown)
        if block.query is None:
            return TokenPosterior(self.codebook, constants, block, block.context_log_odds, correction)
        block = replace(block, query=block.query + self.codebook.widen(correction))
        return TokenPosterior(self.codebook, constants, block, block.context_log_odds)


READOUTS: dict[str, type[DirectReadout]] = {
    "direct": DirectReadout,
    "matched_filter": MatchedFilterReadout,
    "codebook_prior": CodebookPriorReadout,
    "codebook": CodebookReadout,
}
