"""What a worker trains, made in the worker from plain data. Workers load this module, so it needs no Prefect."""

from collections.abc import Iterator
from contextlib import contextmanager
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
from bitlm.errors import ConfigError
from bitlm.model import weights
from bitlm.model.config import BitLMConfig, Vocabulary
from bitlm.model.model import BitLMForCausalLM
from bitlm.model.transfer import take_backbone
from bitlm.model.weights import CONFIG
from bitlm.train.loop import Setup


@dataclass(frozen=True)
class Start:
    """Weights to start from: a pretrain artifact, or a checkpoint elsewhere with the state that was told of it."""

    source: str
    record: Record | None
    state: dict[str, Any] | None

    @contextmanager
    def folder(self, store: Store) -> Iterator[Path]:
        """A local folder with the weights, which may be removed after the context."""
        if self.record is None:
            yield weights.fetch(self.source, self.state)
        else:
            with store.local_folder(self.record, "model") as folder:
                yield Path(folder)


def pretrain_setup(
    root: str, tokens: Record, tokenizer: Record, head: Head, model: ModelConfig, config: PretrainConfig,
    start: Start | None, checkpoints: str, out: str,
) -> Setup:  # fmt: skip
    """A model of one head, untrained or with the backbone of ``start``, and token shards."""
    store = Store(root)
    info = load_tokenizer(store, tokenizer).info
    vocabulary = Vocabulary(info.vocab_size, info.num_bits, info.end_id, info.pad_id)
    described = BitLMConfig.from_sections(model, head, vocabulary)

    batches = open_pretrain(store, tokens, config)

    def untrained() -> BitLMForCausalLM:
        torch.manual_seed(config.seed)
        made = BitLMForCausalLM(described)
        if start is not None:
            with start.folder(store) as folder:
                take_backbone(made, folder, start.source)
        if described.has_codebook:
            made.set_unigram(unigram_counts(batches.training_shards(), described.vocab_size))
        return made

    return Setup(config, described, untrained, batches, checkpoints, out, _beside(store, tokenizer))


def finetune_setup(
    root: str, pretrained: Record, corpus: Record, tokenizer: Record, prompt: PromptConfig, config: FinetuneConfig,
    checkpoints: str, out: str,
) -> Setup:  # fmt: skip
    """A pretrained model and summaries. Raises ConfigError where its blocks and the prompt's lengths do not fit."""
    store = Store(root)
    with store.local_file(pretrained, f"model/{CONFIG}") as file:
        described = BitLMConfig.from_json_file(file)
    m = described.block_size
    if prompt.max_summary_tokens % m:
        raise ConfigError(
            f"prompt.max_summary_tokens = {prompt.max_summary_tokens} is not a whole number of the blocks of {m} "
            f"tokens that {pretrained.id} writes"
        )

    def trained() -> BitLMForCausalLM:
        with store.local_folder(pretrained, "model") as folder:
            return BitLMForCausalLM.load(folder)

    batches = open_finetune(store, corpus, tokenizer, prompt, m, config.seed)
    return Setup(config, described, trained, batches, checkpoints, out, _beside(store, tokenizer))


def _beside(store: Store, tokenizer: Record) -> dict[str, bytes]:
    """The tokenizer's files, which a model's folder holds too."""
    return {name: store.read_bytes(tokenizer, name) for name in (TOKENIZER_FILE, INFO_FILE)}
