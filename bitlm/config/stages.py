"""One frozen model for each part of the pipeline.

The settings at its top level say what is computed: its *identity*, which enters fingerprints. Those under
``execution`` say where and how fast, and never enter one.
"""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from bitlm.config.frozen import Frozen
from bitlm.config.sampler import SamplerConfig

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"  # of values that become part of an artifact's name, and so of a path
Head = Literal["diffusion", "lm"]
Denoiser = Literal["direct", "matched_filter", "codebook_prior", "codebook"]
ContextPath = Literal["norm", "direct", "attention"]
Attention = Literal["full", "causal"]
Mask = Literal["block", "causal"]
BackboneInput = Literal["embedding", "codes"]
Loss = Literal["velocity", "bce", "x", "token"]
NoiseLevels = Literal["logit_normal", "uniform"]
Initialization = Literal["qwen3", "scaled"]
InitKind = Literal["lm", "artifact", "hub", "folder"]

HUB = "hub:"  # prefix of a setting that names a repository on the Hub
PRETRAIN_ID = re.compile(r"pretrain/[A-Za-z0-9._-]+(@v[1-9][0-9]*)?")


class StageConfig(Frozen):
    def identity(self) -> dict[str, Any]:
        """What is computed, as plain JSON values: everything except the artifact's name and ``execution``."""
        return self.model_dump(mode="json", exclude={"name", "execution"})


class CorpusConfig(StageConfig):
    """Text to pretrain on, and the summarization set."""

    name: str = Field("docstrings", pattern=NAME, description="name of the corpus and token artifacts")
    source: str = Field(
        "docstrings",
        min_length=1,
        description="docstrings, a path, pattern or URL of parquet or jsonl files, or hub:OWNER/NAME",
    )
    subset: str | None = Field(
        None, min_length=1, description="configuration of a Hub dataset, for example sample-10BT"
    )
    revision: str | None = Field(None, min_length=1, description="branch, tag or commit of a Hub dataset")
    text_column: str = Field("text", min_length=1)
    validation_fraction: float = Field(0.01, gt=0, lt=0.5)
    summaries: str = Field(
        "docstrings",
        min_length=1,
        description="docstrings, a path, pattern or URL of parquet or jsonl files, or hub:OWNER/NAME",
    )
    summaries_revision: str | None = Field(None, min_length=1)
    max_documents: int | None = Field(None, ge=1, description="stop after so many documents (docstrings only)")


class TokenizerConfig(StageConfig):
    source: str = Field(
        "train",
        min_length=1,
        description="train, a path or URL of a tokenizer.json or its folder, or hub:OWNER/NAME",
    )
    revision: str | None = Field(None, min_length=1)
    vocab_size: int = Field(4096, ge=257, description="size of the vocabulary to train; ignored for a ready tokenizer")
    num_bits: int | None = Field(None, ge=1, le=32, description="bits per token, B; by default ⌈log2 V⌉")
    end_token: str = Field("<|endoftext|>", min_length=1)


class TokensExecution(Frozen):
    num_workers: int | None = Field(None, ge=1, description="units in work at once; by default the cluster's CPUs")
    engine: Literal["fast", "reference"] = Field(
        "fast", description="fastokens, or tokenizers for everything; the ids are the same"
    )


class TokensConfig(StageConfig):
    unit_bytes: int = Field(256 * 2**20, ge=1, description="source bytes per unit of work, and so per shard")
    execution: TokensExecution = TokensExecution()


class HeadConfig(Frozen):
    """The diffusion head (BitDance's shape)."""

    width: int | None = Field(None, ge=8, description="H; by default the backbone's width D")
    num_layers: int = Field(6, ge=1)
    head_dim: int = Field(128, ge=8)
    ffn_ratio: float = Field(1.5, gt=0)
    denoiser: Denoiser = "direct"
    context_path: ContextPath = Field(
        "norm",
        description="norm: C enters through the adaptive norm; direct: also by the input and the bits' log-odds; "
        "attention: by the input and as further keys and values",
    )
    attention: Attention = Field(
        "full", description="inside a block; causal: clean slots see the clean ones before them, nobody sees pure noise"
    )
    self_conditioning: bool = Field(
        False, description="the head is also shown its last estimate of the codes (Analog Bits), by the descent alone"
    )
    codebook_rank: int | None = Field(
        None, ge=1, description="columns of the embedding's copy that every step of the codebook uses; by default all"
    )
    codebook_candidates: int = Field(4096, ge=1, description="likeliest tokens per slot that generation keeps")

    def check(self, hidden_size: int, prefix: str) -> None:
        """Raises ValueError where the values cannot go together on a backbone of this width; ``prefix`` (such as
        ``model.head.``) stands before the names in the message."""
        width = self.width or hidden_size
        if width % self.head_dim:
            raise ValueError(f"{prefix}head_dim = {self.head_dim} does not divide the head's width {width}")
        if self.codebook_rank is not None and self.denoiser != "codebook":
            raise ValueError(f"{prefix}codebook_rank = {self.codebook_rank} needs {prefix}denoiser = codebook")
        if self.codebook_rank is not None and self.codebook_rank > hidden_size:
            raise ValueError(
                f"{prefix}codebook_rank = {self.codebook_rank} is more than the backbone's hidden_size = {hidden_size}"
            )


class ModelConfig(StageConfig):
    """Qwen3 backbone and the head on top of it."""

    scale: str = Field("0.6b", pattern=NAME, description="begins the names of what is trained and evaluated")
    hidden_size: int = Field(1024, ge=8)
    num_layers: int = Field(28, ge=1)
    num_heads: int = Field(16, ge=1)
    num_kv_heads: int = Field(8, ge=1)
    head_dim: int = Field(128, ge=2, multiple_of=2, description="even: rotary positions turn pairs")
    ffn_size: int = Field(3072, ge=8)
    tie_embeddings: bool = True
    rope_theta: float = Field(1e6, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    block_size: int = Field(4, ge=1, description="m, tokens per block (the LM head always has m = 1)")
    mask: Mask = Field("block", description="block: a block's tokens see each other; causal: those before them")
    input: BackboneInput = Field(
        "embedding", description="what both heads' backbones are fed: embedding rows, or codes through a small MLP"
    )
    slot_embedding: bool = Field(False, description="tell the backbone each token's place in its block")
    initialization: Initialization = Field("qwen3", description="qwen3: normal with 0.02; scaled: by width and depth")
    head: HeadConfig = HeadConfig()


class PromptConfig(StageConfig):
    """How an example becomes tokens: document, separator, summary, end token."""

    max_prompt_tokens: int = Field(512, ge=1, description="document and separator together")
    max_summary_tokens: int = Field(64, ge=1, description="summary and end tokens together; a multiple of block_size")
    separator: str = "\n\nSummary: "


class DiffusionConfig(Frozen):
    """Training of the diffusion head; has no part in the LM head's fingerprint."""

    loss: Loss = "velocity"
    t_distribution: NoiseLevels = "logit_normal"
    t_mean: float = Field(0.8, description="mean of logit(t) if t is logit-normal")
    t_std: float = Field(0.8, gt=0)
    t_min: float = Field(0.05, gt=0, lt=1, description="floor of t in the velocity loss")
    uniform_share: float = Field(0.0, ge=0, le=1, description="share of logit-normal levels drawn uniformly instead")
    t_low: float = Field(0.0, ge=0, lt=1, description="least of the uniform levels")
    noise_draws: int = Field(1, ge=1, description="noise draws per backbone state")
    noise_share: float = Field(1.0, ge=0, le=1, description="share of the blocks that learn from their noise draws")
    prefix_share: float = Field(
        0.0, ge=0, le=1, description="share of the draws that are a clean prefix of any length, and pure noise"
    )
    chain_slots: int = Field(
        0, ge=0, description="slots learned behind each clean prefix of a block, in one pass: 0 none, 1 the next, m all"
    )
    block_offsets: int = Field(
        1, ge=1, description="places of a block at which chains begin: 1 as generation, m all (model.mask = causal)"
    )
    next_token_weight: float = Field(
        0.0, ge=0, description="of the loss on the next token at the other positions (model.mask = causal)"
    )
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    slot_noise: float = Field(0.0, ge=0, le=1, description="share of the blocks that draw a noise level for every slot")
    flip_share: float = Field(
        0.0, ge=0, lt=0.5, description="share of the bits of the backbone's input codes that are flipped"
    )


class TrainExecution(Frozen):
    num_workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores, and torch threads, of each worker")
    use_gpu: bool = False
    micro_batch_size: int | None = Field(
        None, ge=1, description="sequences per forward pass; by default a worker's whole share"
    )
    checkpoint_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    max_failures: int = Field(3, ge=0, description="restarts of the worker group before the stage fails")


class TrainConfig(StageConfig):
    steps: int = Field(1000, ge=1)
    batch_size: int = Field(16, ge=1, description="sequences (or examples) per step, over all workers")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: for the matrices inside the layers")
    learning_rate: float = Field(3e-4, gt=0)
    muon_learning_rate: float = Field(0.02, gt=0, description="of muon's matrices, on the same schedule")
    final_lr_ratio: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(0, ge=0)
    validate_every: int = Field(200, ge=1)
    validation_batches: int = Field(8, ge=1, description="batches of batch_size per validation")
    diffusion: DiffusionConfig = DiffusionConfig()
    execution: TrainExecution = TrainExecution()

    def identity_for(self, head: Head) -> dict[str, Any]:
        """The identity for one head, without settings that do not concern it or its optimizer."""
        identity = self.identity()
        if head == "lm":
            del identity["diffusion"]
        if self.optimizer == "adamw":
            del identity["muon_learning_rate"]
        return identity


def init_kind(init_from: str) -> InitKind:
    """What a value of ``pretrain.init_from`` names. A folder that looks like an artifact's id is written ``./…``."""
    if init_from == "lm":
        return "lm"
    if PRETRAIN_ID.fullmatch(init_from):
        return "artifact"
    return "hub" if init_from.startswith(HUB) else "folder"


class PretrainExecution(TrainExecution):
    cache_bytes: int | None = Field(
        None,
        ge=1,
        description="local copies of remote shards, on each machine; by default two windows and a validation shard",
    )


class PretrainConfig(TrainConfig):
    heads: tuple[Head, ...] = Field(("diffusion", "lm"), min_length=1)
    sequence_length: int = Field(2048, ge=8, description="L, tokens per sequence; a multiple of 8 and of block_size")
    window_shards: int = Field(4, ge=1, description="shards per window of the order of the data")
    init_from: str | None = Field(
        None,
        min_length=1,
        description="lm (an LM head of this pipeline, trained first), pretrain/NAME[@vN], a folder or hub:OWNER/NAME",
    )
    execution: PretrainExecution = PretrainExecution()

    @field_validator("heads")
    @classmethod
    def _check_heads(cls, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        if len(set(heads)) < len(heads):
            raise ValueError("a head is named twice")
        return heads

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"name", "execution", "heads"})


class FinetuneConfig(TrainConfig):
    pass


class EvaluateExecution(Frozen):
    num_actors: int = Field(1, ge=1)
    cpus_per_actor: int = Field(1, ge=1)
    use_gpu: bool = False
    batch_size: int = Field(32, ge=1)
    compile: bool = Field(False, description="the diffusion head through torch.compile, on a GPU as one CUDA graph")


class EvaluateConfig(StageConfig, SamplerConfig):
    split: Literal["validation", "test"] = "test"
    examples: int | None = Field(None, ge=1, description="the first so many examples of the split; by default all")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the models that generate")
    seed: int = Field(0, ge=0)
    lead_sentences: int = Field(1, ge=1, description="sentences of the lead baseline")
    bootstrap_samples: int = Field(1000, ge=1)
    brier_blocks: int = Field(
        2000, ge=0, description="blocks of held-out tokens that are sampled twice for BrierLM; 0: no BrierLM"
    )
    tokenizer: Literal["rouge", "unicode"] = Field(
        "rouge", description="words that ROUGE compares: rouge-score's (a-z and 0-9, stemmed), or those of any script"
    )
    execution: EvaluateExecution = EvaluateExecution()


class ReportConfig(StageConfig):
    title: str = "BitLM"
    examples: int = Field(6, ge=0, description="generated examples shown")
