"""The engines that turn text into ids: ``fastokens``, checked by samples against ``tokenizers``, which is the reference
and takes over for tokenizers that ``fastokens`` cannot load. Ids come flat: no Python object for each token."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import fastokens
import numpy as np
from tokenizers import Tokenizer

Engine = Literal["fast", "reference"]

SAMPLE_CHARACTERS = 2**15  # of one text that is compared: the reference is slow, and its memory grows with the text


@dataclass(frozen=True)
class Encoded:
    """``ids`` uint32 [tokens] of all texts, one after the other; ``lengths`` int64 [texts], the tokens of each."""

    ids: np.ndarray
    lengths: np.ndarray


class TextEncoder:
    """Texts to ids, without any added token; literal strings of special tokens are text. Uses one core.

    ``fastokens`` keeps a bounded number of words that it has met: about 0.1 GB however much text goes through.
    """

    def __init__(self, data: bytes, engine: Engine = "fast") -> None:
        """``data`` is a ``tokenizer.json``."""
        # Both are read when the libraries first encode something.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        plain = without_added_tokens(data)
        self._reference = Tokenizer.from_str(plain)
        self._fast: fastokens.Tokenizer | None = None
        if engine == "fast":
            try:
                self._fast = fastokens.Tokenizer.from_json_str(plain)
            except ValueError:  # of a kind that it does not know
                self._fast = None

    @property
    def engine(self) -> Engine:
        return "reference" if self._fast is None else "fast"

    def encode(self, texts: Sequence[str]) -> Encoded:
        if self._fast is None:
            return self._by_reference(texts)
        ids, offsets = self._fast.encode_batch_flat(list(texts))
        return Encoded(np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64)))

    def difference(
        self, texts: Sequence[str], encoded: Encoded, order: Iterable[int], characters: float
    ) -> tuple[int | None, int]:
        """Encode some of the texts with the reference too, in the given order, until ``characters`` are compared.

        Returns the index of the first text whose ids differ, and how many characters were compared. Of a long text
        only the beginning is.
        """
        compared = 0
        if self._fast is None:
            return None, compared
        starts = np.concatenate([[0], np.cumsum(encoded.lengths)])
        for index in order:
            if compared >= characters:
                break
            text, ids = texts[index], encoded.ids[starts[index] : starts[index + 1]]
            if len(text) > SAMPLE_CHARACTERS:
                text = text[:SAMPLE_CHARACTERS]
                ids = self.encode([text]).ids
            if not np.array_equal(self._by_reference([text]).ids, ids):
                return index, compared
            compared += len(text)
        return None, compared

    def _by_reference(self, texts: Sequence[str]) -> Encoded:
        encoded = [
            encoding.ids for encoding in self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        return Encoded(np.fromiter((id for ids in encoded for id in ids), np.uint32, int(lengths.sum())), lengths)


def without_added_tokens(data: bytes) -> str:
    """A ``tokenizer.json`` whose added tokens are unknown. The library's ``encode_special_tokens`` would not do: it
    concerns only the tokens that are marked special, and Qwen3's ``<think>`` is not."""
    description = json.loads(data)
    return json.dumps(description | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
