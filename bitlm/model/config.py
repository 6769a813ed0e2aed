"""Configuration of a BitLM model in Transformers' form: Qwen3's names for the backbone, ``HeadConfig`` for the head."""

from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from os import PathLike
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from transformers import PreTrainedConfig, Qwen3Config

from bitlm.codes import min_bits
from bitlm.config import Head, HeadConfig, ModelConfig
from bitlm.config.stages import BackboneInput, Initialization, Mask
from bitlm.errors import ConfigError
from bitlm.packing import MAX_BITS

ROW_MULTIPLE = 128
QWEN3_IDS, QWEN3_ROWS = 151_669, 151_936
DTYPES = {
    dtype: str(dtype).removeprefix("torch.") for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}

# What Transformers itself may write into a configuration beside its declared fields.
_WRITTEN = {
    "_attn_implementation",
    "_name_or_path",
    "attn_implementation",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "use_cache",
}
_AT_LEAST_ONE = {
    "vocab_size",
    "embedding_rows",
    "block_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "rope_theta",
    "max_position_embeddings",
}
_OF_A_START = {"initialization", "initializer_range"}  # say nothing of a trained model


@dataclass(frozen=True)
class Vocabulary:
    """What a model needs to know of its tokenizer: V ids of B bits, and two of the ids."""

    vocab_size: int
    num_bits: int
    end_id: int
    pad_id: int


def embedding_rows(vocab_size: int) -> int:
    """V rounded up to a multiple of 128, except for Qwen3's ids: the published matrices have more rows."""
    return QWEN3_ROWS if vocab_size == QWEN3_IDS else -(-vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE


class BitLMConfig(PreTrainedConfig):
    """``head`` is "diffusion", or "lm" for the baseline (then ``block_size`` is 1, and ``diffusion_head`` is unused).

    Letters: V = ``vocab_size``, B = ``num_bits``, m = ``block_size``, D = ``hidden_size``,
    H = ``diffusion_head.width``.

    Raises ConfigError for values that cannot go together.
    """

    model_type = "bitlm"

    head: Literal["diffusion", "lm"] = "diffusion"
    vocab_size: int = 256
    embedding_rows: int = 256
    num_bits: int = 8
    block_size: int = 4
    mask: Mask = "block"
    input: BackboneInput = "embedding"
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

    diffusion_head: HeadConfig | dict[str, Any] = HeadConfig(num_layers=2, head_dim=16)

    end_token_id: int = 0
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs) -> None:
        self._check_names(kwargs)
        self._check_types()
        super().__post_init__(**kwargs)
        self._set_diffusion_head(self.diffusion_head)
        self.check()

    def check(self) -> None:
        """Raises ConfigError for a field of another type, and for values that cannot go together."""
        self._check_types()
        if not min_bits(self.vocab_size) <= self.num_bits <= MAX_BITS:
            raise ConfigError(
                f"num_bits = {self.num_bits}: {self.vocab_size} ids need {min_bits(self.vocab_size)} to {MAX_BITS} bits"
            )
        if self.embedding_rows < self.vocab_size:
            raise ConfigError(f"embedding_rows = {self.embedding_rows} is less than vocab_size = {self.vocab_size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads = {self.num_attention_heads} is no multiple of num_key_value_heads = "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim = {self.head_dim}: rotary positions need an even number")
        if self.head == "lm" and self.block_size != 1:
            raise ConfigError(f"block_size = {self.block_size}: the LM head predicts one token at a time; set it to 1")
        for name in ("end_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ConfigError(f"{name} = {value} is not one of the {self.vocab_size} ids")

    def _check_names(self, further: dict[str, Any]) -> None:
        known = {field.name for field in fields(self)}
        for name in further.keys() - _WRITTEN:
            if name == "quantization_config":
                raise ConfigError("quantization_config: a quantized model is not supported")
            near = get_close_matches(name, known, n=1)
            raise ConfigError(f"{name} is unknown" + (f"; the nearest valid one is {near[0]}" if near else ""))
        if (named := further.get("model_type")) not in (None, self.model_type):
            raise ConfigError(f"model_type = {named!r}: expected {self.model_type!r}")

    def _check_types(self) -> None:
        values = {name: getattr(self, name) for name in _types().model_fields}
        try:
            _types().model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{first['loc'][0]} = {first['input']!r}: {first['msg']}") from None
        if self.dtype not in (None, *DTYPES, *DTYPES.values()):
            raise ConfigError(f"dtype = {self.dtype!r}: choose {', '.join(DTYPES.values())}")

    def _set_diffusion_head(self, given: HeadConfig | dict[str, Any]) -> None:
        """Fill in the width and check the values; a ``config.json`` holds a dictionary."""
        try:
            head = HeadConfig.model_validate(given)
            if self.head == "diffusion":
                head.check(self.hidden_size, "diffusion_head.")
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in ("diffusion_head", *first["loc"]))
            raise ConfigError(f"{key} = {first['input']!r}: {first['msg']}") from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.diffusion_head = head.model_copy(update={"width": head.width or self.hidden_size})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Of a stored configuration, which holds every field: a default in place of one could be another model.

        Raises ConfigError naming a field that is missing, unknown or of another type, or another type of model.
        """
        if (named := config_dict.get("model_type")) != cls.model_type:
            raise ConfigError(f"model_type = {named!r}: expected {cls.model_type!r}")
        missing = [name for name in own_fields() if name not in config_dict and name not in _OF_A_START]
        head = config_dict.get("diffusion_head")
        if isinstance(head, dict) and config_dict.get("head") == "diffusion":
            missing += [f"diffusion_head.{name}" for name in HeadConfig.model_fields if name not in head]
        if missing:
            raise ConfigError(f"{missing[0]} is missing")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (TypeError, ValueError, AttributeError) as error:  # of fields that Transformers reads
            raise ConfigError(f"Transformers cannot read it ({error})") from error

    @classmethod
    def from_json_file(cls, json_file: str | PathLike):
        """Of a file that ``save_pretrained`` wrote. Raises as ``from_dict``."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def from_sections(cls, model: ModelConfig, head: Head, vocabulary: Vocabulary) -> "BitLMConfig":
        """From the pipeline's configuration and the tokenizer. The LM head always gets ``block_size`` 1."""
        return cls(
            head=head,
            vocab_size=vocabulary.vocab_size,
            embedding_rows=embedding_rows(vocabulary.vocab_size),
            num_bits=vocabulary.num_bits,
            block_size=1 if head == "lm" else model.block_size,
            mask="block" if head == "lm" else model.mask,
            input=model.input,
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
            diffusion_head=model.head,
            end_token_id=vocabulary.end_id,
            pad_token_id=vocabulary.pad_id,
        )

    @property
    def has_codebook(self) -> bool:
        return self.head == "diffusion" and self.diffusion_head.denoiser in ("codebook_prior", "codebook")

    @property
    def has_token_posterior(self) -> bool:
        """Whether the head's answer is a distribution over tokens, not over independent bits."""
        return self.head == "diffusion" and self.diffusion_head.denoiser == "codebook"

    @property
    def has_embedding(self) -> bool:
        """Whether there is an embedding matrix: as the input, as an LM head's tied output, or for the codebook."""
        tied_output = self.head == "lm" and self.tie_word_embeddings
        return self.input == "embedding" or tied_output or self.has_codebook

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = super().to_dict()
        if isinstance(self.diffusion_head, HeadConfig):
            plain["diffusion_head"] = self.diffusion_head.model_dump(mode="json")
        return plain

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
            attn_implementation=self._attn_implementation or "sdpa",
        )


def own_fields() -> tuple[str, ...]:
    """The fields that BitLMConfig declares beside Transformers' own."""
    return tuple(field.name for field in fields(BitLMConfig) if field.name in BitLMConfig.__annotations__)


@cache
def _types() -> type[BaseModel]:
    """The declared types of the fields, as a model that checks them."""
    declared = {}
    for name in own_fields():
        if name != "diffusion_head":
            hint = BitLMConfig.__annotations__[name]
            declared[name] = (Annotated[hint, Field(ge=1)] if name in _AT_LEAST_ONE else hint, ...)
    return create_model("Types", __config__=ConfigDict(strict=True, protected_namespaces=()), **declared)
