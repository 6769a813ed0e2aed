"""Batches for training: pure functions of a position in the endless training order, or of an index of the validation
split. They follow ``bitlm.train.batches.Batches``."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.batch import Batch
from bitlm.config import PretrainConfig
from bitlm.data.reading.open_shards import OpenShards, open_splits
from bitlm.data.reading.order import Order
from bitlm.data.reading.sequences import Sequences
from bitlm.data.shards.format import Shard
from bitlm.data.shards.units import TOKENS_FILE
from bitlm.data.summaries.examples import Example, read_trainable
from bitlm.data.summaries.prompts import SummaryFormat, collate
from bitlm.errors import ConfigError


class PretrainBatches:
    """Sequences of L tokens out of shards. ``bytes_per_token`` is that of the validation text, end tokens counted.

    ``train`` keeps the shards of its window of the order open, and has those of the next fetched. One thread may call
    it while another calls ``validation``.
    """

    def __init__(
        self,
        train: OpenShards,
        validation: OpenShards,
        config: PretrainConfig,
        bytes_per_token: float | None,
        first_position: int = 0,
    ) -> None:
        """``first_position`` of the training order is position 0 here. Raises ConfigError if no training shard holds a
        sequence."""
        length = config.sequence_length
        self._train, self._validation = Sequences(train, length), Sequences(validation, length)
        if len(self._train) == 0:
            raise ConfigError(
                f"pretrain.sequence_length = {length} is more than any of the {len(train)} training shards holds"
            )
        self._order = Order(self._train.per_shard, config.seed, config.window_shards)
        self._first = first_position
        self.bytes_per_token = bytes_per_token
        self.validation_count = len(self._validation)
        self.unused_tokens = self._train.unused_tokens

    def train(self, positions: Sequence[int]) -> Batch:
        """ids [b, L] at positions of the training order, counted from the first one."""
        positions = np.asarray(positions) + self._first
        indices, epochs = self._order(positions)
        ids = np.empty((len(indices), self._train.length), dtype=np.int64)
        for here, now, soon in self._order.windows(positions):
            self._train.shards.keep(now, soon)
            if len(here) == len(ids):
                ids = self._train.ids(indices)
            else:
                ids[here] = self._train.ids(indices[here])
        return Batch(torch.from_numpy(ids), None, None, indices.tolist(), epochs.tolist())

    def validation(self, indices: Sequence[int]) -> Batch:
        ids = self._validation.ids(indices)
        return Batch(torch.from_numpy(ids), None, None, list(indices), [0] * len(ids))

    def training_shards(self) -> Iterator[AbstractContextManager[Shard]]:
        """The training shards in the order of the artifact, each open within its context."""
        shards = self._train.shards
        return (shards.shard(number) for number in range(len(shards)))

    def close(self) -> None:
        self._train.shards.close()
        self._validation.shards.close()


class FinetuneBatches:
    """Summarization examples, encoded when they are asked for. Loss covers the summaries only: no bytes per token."""

    bytes_per_token = None

    def __init__(
        self, train: Sequence[Example], validation: Sequence[Example], summary_format: SummaryFormat, seed: int
    ) -> None:
        self._train, self._validation, self._format = train, validation, summary_format
        self._order = Order([len(train)], seed, 1)
        self.validation_count = len(validation)

    def train(self, positions: Sequence[int]) -> Batch:
        """ids [b, L], attention_mask [b, L] and loss_tokens [b, L] at positions of the training order."""
        indices, epochs = self._order(positions)
        return self._batch(self._train, indices.tolist(), epochs.tolist())

    def validation(self, indices: Sequence[int]) -> Batch:
        return self._batch(self._validation, list(indices), [0] * len(indices))

    def _batch(self, examples: Sequence[Example], indices: list[int], epochs: list[int]) -> Batch:
        return collate(self._format, [examples[index] for index in indices], indices, epochs)

    def close(self) -> None:
        """Nothing to release."""


def open_pretrain(store: Store, tokens: Record, config: PretrainConfig, first_position: int = 0) -> PretrainBatches:
    """The batches of a tokens artifact, from a position of the training order on; each shard is verified before it is
    first read.

    Raises ArtifactError naming the file that is wrong, here or when it is met.
    """
    summary: dict[str, Any] = json.loads(store.read_bytes(tokens, TOKENS_FILE))
    shards = open_splits(store, tokens, summary, config)
    validation = summary["splits"]["validation"]
    counted = validation["tokens"] - validation["filling"]
    bytes_per_token = validation["text_bytes"] / counted if counted else None
    return PretrainBatches(shards["train"], shards["validation"], config, bytes_per_token, first_position)


def open_finetune(store: Store, corpus: Record, summary_format: SummaryFormat, seed: int) -> FinetuneBatches:
    """The batches of a corpus artifact's summarization set."""
    train, validation = (list(read_trainable(store, corpus, split)) for split in ("train", "validation"))
    return FinetuneBatches(train, validation, summary_format, seed)
