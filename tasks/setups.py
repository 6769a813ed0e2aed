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
from bitlm.data.summaries.prompts import SummaryFormat
from bitlm.errors import ConfigError
from bitlm.model import weights
from bitlm.model.config import BitLMConfig, Vocabulary
from bitlm.model.model import BitLMForCausalLM
from bitlm.model.transfer import take_backbone
from bitlm.train.loop import Folders, Setup


@dataclass(frozen=True)
class StartWeights:
    """Weights to start from: a pretrain artifact, or else a checkpoint elsewhere, which must be in the ``state`` that
    the fingerprint was computed from. ``source`` names them in messages."""

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


@dataclass(frozen=True)
class PretrainInputs:
    """A pretraining: artifacts below ``root``, configuration, the weights to start from (None: untrained), and the
    position of the training order at which it begins."""

    root: str
    tokens: Record
    tokenizer: Record
    head: Head
    model: ModelConfig
    config: PretrainConfig
    start: StartWeights | None
    first_position: int


@dataclass(frozen=True)
class FinetuneInputs:
    """A fine-tuning: artifacts below ``root``, and configuration."""

    root: str
    pretrained: Record
    corpus: Record
    tokenizer: Record
    prompt: PromptConfig
    config: FinetuneConfig


def pretrain_setup(inputs: PretrainInputs, folders: Folders) -> Setup:
    """A model of one head, untrained or with the backbone of ``inputs.start``, and token shards."""
    store, config = Store(inputs.root), inputs.config
    info = load_tokenizer(store, inputs.tokenizer).info
    vocabulary = Vocabulary(info.vocab_size, info.num_bits, info.end_id, info.pad_id)
    architecture = BitLMConfig.from_sections(inputs.model, inputs.head, vocabulary)
    batches = open_pretrain(store, inputs.tokens, config, inputs.first_position)

    def initial_model() -> BitLMForCausalLM:
        torch.manual_seed(config.seed)
        model = BitLMForCausalLM(architecture)
        if inputs.start is not None:
            with inputs.start.folder(store) as folder:
                take_backbone(model, folder, inputs.start.source)
        if architecture.has_codebook:
            model.set_unigram(unigram_counts(batches.training_shards(), architecture.vocab_size))
        return model

    return Setup(config, architecture, initial_model, batches, folders, _tokenizer_files(store, inputs.tokenizer))


def finetune_setup(inputs: FinetuneInputs, folders: Folders) -> Setup:
    """A pretrained model and summaries. Raises ConfigError if its blocks and the prompt's lengths do not fit."""
    store, prompt = Store(inputs.root), inputs.prompt
    with store.local_file(inputs.pretrained, f"model/{weights.CONFIG}") as file:
        architecture = BitLMConfig.from_json_file(file)
    m = architecture.block_size
    if prompt.max_summary_tokens % m:
        raise ConfigError(
            f"prompt.max_summary_tokens = {prompt.max_summary_tokens} is not a whole number of the blocks of {m} "
            f"tokens that {inputs.pretrained.id} writes"
        )

    def initial_model() -> BitLMForCausalLM:
        with store.local_folder(inputs.pretrained, "model") as folder:
            return BitLMForCausalLM.load(folder)

    summary_format = SummaryFormat(load_tokenizer(store, inputs.tokenizer), prompt, m)
    batches = open_finetune(store, inputs.corpus, summary_format, inputs.config.seed)
    files = _tokenizer_files(store, inputs.tokenizer)
    return Setup(inputs.config, architecture, initial_model, batches, folders, files)


def _tokenizer_files(store: Store, tokenizer: Record) -> dict[str, bytes]:
    """File name → content: a model's folder holds its tokenizer too."""
    return {name: store.read_bytes(tokenizer, name) for name in (TOKENIZER_FILE, INFO_FILE)}
