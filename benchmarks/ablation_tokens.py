"""Tokens for the ablation: the docstrings of the installed packages, made once in a work folder."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bitlm.batch import Batch
from bitlm.config import TokenizerConfig
from bitlm.data.reading.order import Order
from bitlm.data.shards import tokenizer
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, TextTokenizer
from bitlm.data.sources import docstrings, splits

VALIDATION_FRACTION = 0.02
SHOWN_TO_TOKENIZER = 20_000_000  # characters


def made_tokens(work: Path, vocab_size: int) -> Path:
    """The folder with tokens of this vocabulary and of the packages that are installed now, made if need be."""
    digest = hashlib.sha256(json.dumps(docstrings.state()).encode()).hexdigest()[:8]
    folder = work / f"tokens-{vocab_size}-{digest}"
    if (folder / "done").exists():
        return folder
    print(f"making tokens in {folder}: about two minutes", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(dict.fromkeys(_texts()))
    some = texts[:: max(1, sum(map(len, texts)) // SHOWN_TO_TOKENIZER)]
    config = TokenizerConfig(vocab_size=vocab_size)
    data = tokenizer.train(some, config)
    (folder / TOKENIZER_FILE).write_bytes(data)
    (folder / INFO_FILE).write_text(tokenizer.describe(data, config).model_dump_json())
    encoder = TextTokenizer.load(folder)
    for split in ("train", "validation"):
        own = [text for text in texts if splits.text_split(splits.digest(text), VALIDATION_FRACTION) == split]
        ids = [id for document in encoder.encode_batch(own) for id in (*document, encoder.info.end_id)]
        np.save(folder / f"{split}.npy", np.array(ids, dtype=np.uint16))
        (folder / f"{split}.json").write_text(json.dumps({"bytes": sum(len(text.encode()) for text in own)}))
    (folder / "done").touch()
    return folder


def _texts() -> list[str]:
    return [found.text for part in docstrings.chunks(docstrings.packages()) for found in docstrings.extract(part)]


class TokenBatches:
    """Sequences of L tokens, as ``bitlm.train.batches.Batches``. ``first_position`` of the training order is position 0
    here."""

    def __init__(self, folder: Path, length: int, seed: int, first_position: int = 0) -> None:
        self._train, self._validation = (self._sequences(folder, split, length) for split in ("train", "validation"))
        self._order, self._first = Order([len(self._train)], seed, 1), first_position
        self.validation_count = len(self._validation)
        size = json.loads((folder / "validation.json").read_text())["bytes"]
        self.bytes_per_token = size / np.load(folder / "validation.npy", mmap_mode="r").size

    @staticmethod
    def _sequences(folder: Path, split: str, length: int) -> np.ndarray:
        ids = np.load(folder / f"{split}.npy", mmap_mode="r")
        return ids[: len(ids) // length * length].reshape(-1, length)

    def train(self, positions: range) -> Batch:
        indices, epochs = self._order(range(positions.start + self._first, positions.stop + self._first))
        return self._batch(self._train, indices.tolist(), epochs.tolist())

    def validation(self, indices: Sequence[int]) -> Batch:
        return self._batch(self._validation, list(indices), [0] * len(indices))

    def close(self) -> None:
        pass  # the files stay mapped while the process lives

    def counts(self, vocab_size: int) -> torch.Tensor:
        """How often each token occurs in training, [V] int64."""
        return torch.from_numpy(np.bincount(self._train.reshape(-1), minlength=vocab_size))

    @staticmethod
    def _batch(sequences: np.ndarray, indices: list[int], epochs: list[int]) -> Batch:
        return Batch(torch.from_numpy(sequences[indices].astype(np.int64)), None, None, indices, epochs)
