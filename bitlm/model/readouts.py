"""From hidden states to the posterior over tokens: one readout for each kind of denoiser.

A readout is called with the network as a function (features that are added to its input → hidden states [n, m, H]),
the evidence on the bits, and what the head has computed once.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from bitlm.diffusion.posterior import BitPosterior, Posterior
from bitlm.diffusion.process import matched_filter
from bitlm.model.codebook import Codebook, bit_log_odds, mean_row, posterior_scores
from bitlm.model.config import BitLMConfig
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

    @staticmethod
    def num_outputs(config: BitLMConfig) -> int:
        """Columns of the output map."""
        return config.num_bits

    def constants(self, embedding: Tensor) -> HeadConstants:
        """From the backbone's embedding matrix [rows, D]."""
        return HeadConstants()

    def prepare(self, block: BlockState, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        """Add what the readout computes of C once, to train on."""
        return block

    def prepare_null(self, block: BlockState, context_1mD: Tensor, constants: HeadConstants) -> BlockState:
        """The same for the null condition of guidance, once per generation."""
        return block

    def prepare_sampling(self, block: BlockState, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        """The same for the steps of a sampler; with guidance n null blocks follow the n blocks."""
        return block if constants.null is None else block.concatenate(constants.null.repeat(len(context_nmD)))

    def evidence(self, noisy_nmB: Tensor, t: Tensor, block: BlockState) -> Tensor | None:
        """The log-odds of the bits that need no network, [n, m, B] float32. t [n or 1, m or 1]."""
        return block.context_log_odds

    def forward(
        self, network: Network, evidence: Tensor | None, constants: HeadConstants, block: BlockState
    ) -> Posterior:
        log_odds = self.output(network()).float()
        return BitPosterior(log_odds if evidence is None else log_odds + evidence, self.vocab_size)


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

    def constants(self, embedding: Tensor) -> HeadConstants:
        return self.codebook.constants(embedding)

    def prepare(self, block: BlockState, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        return self.codebook.add_scores(block, context_nmD, constants)

    def prepare_null(self, block: BlockState, context_1mD: Tensor, constants: HeadConstants) -> BlockState:
        """With the scores of all V tokens."""
        return self.codebook.keep_likeliest(block, context_1mD, constants, self.codebook.vocab_size)[0]

    def prepare_sampling(self, block: BlockState, context_nmD: Tensor, constants: HeadConstants) -> BlockState:
        """Of a large vocabulary the codebook keeps the ``codebook_candidates`` tokens per slot that are likeliest given
        C, the same for both branches of guidance; p is exact among them."""
        block, tokens_nmc = self.codebook.keep_likeliest(block, context_nmD, constants, self.candidates)
        if constants.null is None:
            return block
        null = constants.null.repeat(len(context_nmD))
        if tokens_nmc is not None:
            null = replace(null, scores=null.scores.gather(-1, tokens_nmc), **block.own_tokens())
        return block.concatenate(null)

    def forward(self, network: Network, evidence: Tensor, constants: HeadConstants, block: BlockState) -> Posterior:
        def of_codebook(scores: Tensor, rows: Tensor, codes: Tensor, evidence: Tensor) -> Tensor:
            return bit_log_odds(posterior_scores(scores, rows, codes, evidence), codes)

        mean_rows_nmR = self.codebook.over_tokens(mean_row, constants, block, evidence)
        log_odds = self.output(network(self.codebook.feature(mean_rows_nmR))).float()
        log_odds = log_odds + self.codebook.over_tokens(of_codebook, constants, block, evidence)
        return BitPosterior(log_odds, self.vocab_size)


class CodebookReadout(CodebookPriorReadout):
    """The network's output is part of p, as U·h in the correction a = U·h + Σ T·R̄, which couples the slots."""

    coupled = True

    @staticmethod
    def num_outputs(config: BitLMConfig) -> int:
        return config.diffusion_head.codebook_rank or config.hidden_size

    def forward(self, network: Network, evidence: Tensor, constants: HeadConstants, block: BlockState) -> Posterior:
        mean_rows_nmR = self.codebook.over_tokens(mean_row, constants, block, evidence)
        correction = self.output(network(self.codebook.feature(mean_rows_nmR))) + self.codebook.couple(mean_rows_nmR)
        return TokenPosterior(self.codebook, constants, block, evidence, correction)


READOUTS: dict[str, type[DirectReadout]] = {
    "direct": DirectReadout,
    "matched_filter": MatchedFilterReadout,
    "codebook_prior": CodebookPriorReadout,
    "codebook": CodebookReadout,
}
