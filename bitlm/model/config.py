"""Configuration of a BitLM model in Transformers' form: Qwen3's names for the backbone, our own for the head."""

from typing import Literal

from transformers import PreTrainedConfig, Qwen3Config

from bitlm.codes import min_bits
from bitlm.config import DiffusionConfig, Head, ModelConfig
from bitlm.config.stages import ContextPath, Denoiser, Initialization, Loss, NoiseLevels, SlotOrder
from bitlm.errors import ConfigError
from bitlm.packing import MAX_BITS

ROW_MULTIPLE = 128
QWEN3_IDS, QWEN3_ROWS = 151_669, 151_936


def embedding_rows(vocab_size: int) -> int:
    """V rounded up to a multiple of 128, except for Qwen3's ids: the published matrices have still more rows."""
    return QWEN3_ROWS if vocab_size == QWEN3_IDS else -(-vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE


class BitLMConfig(PreTrainedConfig):
    """``head`` is "diffusion", or "lm" for the baseline (then ``block_size`` is 1).

    Letters: V = ``vocab_size``, B = ``num_bits``, m = ``block_size``, D = ``hidden_size``, H = ``head_width``.

    Raises ConfigError for values that cannot go together.
    """

    model_type = "bitlm"

    head: Literal["diffusion", "lm"] = "diffusion"
    vocab_size: int = 256
    embedding_rows: int = 256
    num_bits: int = 8
    block_size: int = 4
    slot_embedding: bool = False

    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 128
    tie_word_embeddings: bool = True
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 40960
    initialization: Initialization = "qwen3"
    initializer_range: float = 0.02

    head_width: int = 64
    head_num_layers: int = 2
    head_head_dim: int = 16
    head_ffn_ratio: float = 1.5
    denoiser: Denoiser = "direct"
    context_path: ContextPath = "norm"
    codebook_rank: int | None = None
    codebook_candidates: int = 4096

    loss: Loss = "velocity"
    t_distribution: NoiseLevels = "logit_normal"
    t_mean: float = 0.8
    t_std: float = 0.8
    t_min: float = 0.05
    noise_draws: int = 1
    condition_dropout: float = 0.1
    slot_noise: float = 0.0
    slot_order: SlotOrder = "independent"

    end_token_id: int = 0
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if not min_bits(self.vocab_size) <= self.num_bits <= MAX_BITS:
            raise ConfigError(
                f"num_bits = {self.num_bits}: {self.vocab_size} ids need {min_bits(self.vocab_size)} to {MAX_BITS} bits"
            )
        if self.embedding_rows < self.vocab_size:
            raise ConfigError(f"embedding_rows = {self.embedding_rows} is less than vocab_size = {self.vocab_size}")
        if self.head == "lm" and self.block_size != 1:
            raise ConfigError(f"block_size = {self.block_size}: the LM head predicts one token at a time; set it to 1")
        if self.head_width % self.head_head_dim:
            raise ConfigError(f"head_head_dim = {self.head_head_dim} does not divide head_width = {self.head_width}")
        self._check_codebook()
        for name in ("end_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ConfigError(f"{name} = {value} is not one of the {self.vocab_size} ids")

    def _check_codebook(self) -> None:
        if self.loss == "token" and self.denoiser != "codebook":
            raise ConfigError(f"loss = token needs denoiser = codebook; {self.denoiser} does not tell probabilities")
        if self.codebook_rank is not None and self.denoiser != "codebook":
            raise ConfigError(f"codebook_rank = {self.codebook_rank} needs denoiser = codebook")
        if self.codebook_rank is not None and not 1 <= self.codebook_rank <= self.hidden_size:
            raise ConfigError(f"codebook_rank = {self.codebook_rank}: choose 1 to hidden_size = {self.hidden_size}")

    @classmethod
    def from_sections(
        cls,
        model: ModelConfig,
        diffusion: DiffusionConfig,
        *,
        head: Head,
        vocab_size: int,
        num_bits: int,
        end_id: int,
        pad_id: int,
    ) -> "BitLMConfig":
        """From the pipeline's configuration and a tokenizer's figures. The LM head always gets ``block_size`` 1."""
        return cls(
            head=head,
            vocab_size=vocab_size,
            embedding_rows=embedding_rows(vocab_size),
            num_bits=num_bits,
            block_size=1 if head == "lm" else model.block_size,
            slot_embedding=head == "diffusion" and model.slot_embedding,
            initialization=model.initialization,
            hidden_size=model.hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            intermediate_size=model.ffn_size,
            tie_word_embeddings=model.tie_embeddings,
            rope_theta=model.rope_theta,
            rms_norm_eps=model.rms_norm_eps,
            head_width=model.head.width or model.hidden_size,
            head_num_layers=model.head.num_layers,
            head_head_dim=model.head.head_dim,
            head_ffn_ratio=model.head.ffn_ratio,
            denoiser=model.head.denoiser,
            context_path=model.head.context_path,
            codebook_rank=model.head.codebook_rank,
            codebook_candidates=model.head.codebook_candidates,
            end_token_id=end_id,
            pad_token_id=pad_id,
            **diffusion.model_dump(),
        )

    @property
    def has_codebook(self) -> bool:
        return self.head == "diffusion" and self.denoiser in ("codebook_prior", "codebook")

    @property
    def diffusion(self) -> DiffusionConfig:
        """The training settings of the diffusion head."""
        return DiffusionConfig(**{name: getattr(self, name) for name in DiffusionConfig.model_fields})

    def use_diffusion(self, diffusion: DiffusionConfig) -> None:
        """Take over other training settings, for example when fine-tuning a pretrained model."""
        for name, value in diffusion.model_dump().items():
            setattr(self, name, value)
        self._check_codebook()

    def backbone(self) -> Qwen3Config:
        """The Qwen3 model underneath. It gets no padding id: that would freeze a row that may be the end token's."""
        return Qwen3Config(
            vocab_size=self.embedding_rows,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            initializer_range=self.initializer_range,
            rms_norm_eps=self.rms_norm_eps,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            attn_implementation="sdpa",
        )
