"""What a worker trains, made in the worker from plain data. Workers load this module, so it needs no Prefect."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import FinetuneConfig, Head, ModelConfig, PretrainConfig, PromptConfig
from bitlm.data.reading.batches import open_finetune, open_pretrain
from bitlm.data.reading.unigram import unigram_counts
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, load_tokenizer
from bitlm.data.shards.units import TOKENS_FILE
from bitlm.errors import ConfigError
from bitlm.model import weights
from bitlm.model.config import BitLMConfig
from bitlm.model.initialize import take_backbone
from bitlm.model.model import BitLMForCausalLM
from bitlm.train.loop import Setup


@dataclass(frozen=True)
class Start:
    """Weights to start from: a pretrain artifact, or a checkpoint elsewhere with the state that was told of it."""

    source: str
    record: Record | None
    state: dict[str, Any] | None

    def folder(self, store: Store) -> Path:
        if self.record is not None:
            return Path(store.checked_folder(self.record, "model"))
        return weights.fetch(self.source, self.state)


def pretrain_setup(
    root: str, tokens: Record, tokenizer: Record, head: Head, model: ModelConfig, config: PretrainConfig,
    start: Start | None, checkpoints: str, out: str,
) -> Setup:  # fmt: skip
    """A model of one head, untrained or with the backbone of ``start``, and token shards."""
    store = Store(root)
    info = load_tokenizer(store, tokenizer).info
    described = BitLMConfig.from_sections(
        model, config.diffusion, head=head, vocab_size=info.vocab_size, num_bits=info.num_bits, end_id=info.end_id,
        pad_id=info.pad_id,
    )  # fmt: skip

    def untrained() -> BitLMForCausalLM:
        torch.manual_seed(config.seed)
        made = BitLMForCausalLM(described)
        if start is not None:
            take_backbone(made, start.folder(store), start.source)
        if head == "diffusion" and described.denoiser.startswith("codebook"):
            made.set_unigram(_counts(store, tokens, described.vocab_size))
        return made

    return Setup(config, untrained, open_pretrain(store, tokens, config), checkpoints, out, _beside(store, tokenizer))


def _counts(store: Store, tokens: Record, vocab_size: int) -> torch.Tensor:
    with open(store.checked(tokens, TOKENS_FILE), "rb") as file:
        shards = json.load(file)["splits"]["train"]["shards"]
    return unigram_counts((store.checked(tokens, shard["path"]) for shard in shards), vocab_size)


def finetune_setup(
    root: str, pretrained: Record, corpus: Record, tokenizer: Record, prompt: PromptConfig, config: FinetuneConfig,
    checkpoints: str, out: str,
) -> Setup:  # fmt: skip
    """A pretrained model and summaries. Raises ConfigError where its blocks and the prompt's lengths do not fit."""
    store = Store(root)
    folder = store.checked_folder(pretrained, "model")
    m = BitLMConfig.from_pretrained(folder).block_size
    if prompt.max_summary_tokens % m:
        raise ConfigError(
            f"prompt.max_summary_tokens = {prompt.max_summary_tokens} is not a whole number of the blocks of {m} "
            f"tokens that {pretrained.id} writes"
        )

    def trained() -> BitLMForCausalLM:
        model = BitLMForCausalLM.load(folder)
        model.config.use_diffusion(config.diffusion)
        return model

    batches = open_finetune(store, corpus, tokenizer, prompt, m, config.seed)
    return Setup(config, trained, batches, checkpoints, out, _beside(store, tokenizer))


def _beside(store: Store, tokenizer: Record) -> dict[str, bytes]:
    """The tokenizer's files, which a model's folder holds too."""
    found = {}
    for name in (TOKENIZER_FILE, INFO_FILE):
        with open(store.checked(tokenizer, name), "rb") as file:
            found[name] = file.read()
    return found
