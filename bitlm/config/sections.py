"""The configuration of a whole pipeline, and which of its values cannot go together."""

from pydantic import model_validator

from bitlm.config.stages import (
    CorpusConfig,
    EvaluateConfig,
    FinetuneConfig,
    Frozen,
    ModelConfig,
    PretrainConfig,
    PromptConfig,
    ReportConfig,
    TokenizerConfig,
    TokensConfig,
)


class Sections(Frozen):
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokens: TokensConfig = TokensConfig()
    model: ModelConfig = ModelConfig()
    prompt: PromptConfig = PromptConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _possible(self) -> "Sections":
        m, heads, kv_heads = self.model.block_size, self.model.num_heads, self.model.num_kv_heads
        length, summary = self.pretrain.sequence_length, self.prompt.max_summary_tokens
        if length % m:
            raise ValueError(f"model.block_size = {m} does not divide pretrain.sequence_length = {length}")
        if length % 8:
            raise ValueError(
                f"pretrain.sequence_length = {length} is not a multiple of 8, the tokens of one packed code"
            )
        if summary % m:
            raise ValueError(f"model.block_size = {m} does not divide prompt.max_summary_tokens = {summary}")
        if heads % kv_heads:
            raise ValueError(f"model.num_kv_heads = {kv_heads} does not divide model.num_heads = {heads}")
        self._possible_head()
        bits, vocab = self.tokenizer.num_bits, self.tokenizer.vocab_size
        if self.tokenizer.source == "train" and bits is not None and 2**bits < vocab:
            least = (vocab - 1).bit_length()
            raise ValueError(
                f"tokenizer.num_bits = {bits} is too small for tokenizer.vocab_size = {vocab}: at least {least} are "
                "needed"
            )
        for key, stage in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            workers, batch = stage.execution.num_workers, stage.batch_size
            if batch % workers:
                raise ValueError(f"{key}.execution.num_workers = {workers} does not divide {key}.batch_size = {batch}")
        return self

    def _possible_head(self) -> None:
        head = self.model.head
        head.check(self.model.hidden_size, "model.head.")
        for key, stage in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if stage.diffusion.loss == "token" and head.denoiser != "codebook":
                raise ValueError(
                    f"{key}.diffusion.loss = token needs model.head.denoiser = codebook; {head.denoiser} does not tell "
                    "the probabilities of tokens"
                )
