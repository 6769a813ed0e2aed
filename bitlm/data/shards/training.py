"""A tokenizer from the text of a corpus artifact."""

from collections.abc import Iterator
from dataclasses import dataclass

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import TokenizerConfig
from bitlm.data.shards import tokenizer
from bitlm.data.sources.corpus import load_corpus, verified_url
from bitlm.data.sources.held_out import load_held_out
from bitlm.data.sources.rows import read_rows
from bitlm.data.sources.splits import digest, text_split
from bitlm.errors import SourceError

TRAIN_BYTES = 64 * 2**20  # of text; the library needs up to 100 bytes of memory for each where no word comes twice


@dataclass
class TrainingText:
    """Texts of a corpus's train split, in order, and how many have been read; ``left_out`` hold a test document."""

    store: Store
    corpus: Record
    documents: int = 0
    characters: int = 0
    left_out: int = 0

    def __iter__(self) -> Iterator[str]:
        """The first ``TRAIN_BYTES``; the last text is cut. Raises SourceError where there is no usable text."""
        left = TRAIN_BYTES
        for text in self._texts():
            data = text.encode()
            if len(data) > left:
                text = data[:left].decode(errors="ignore")
            self.documents += 1
            self.characters += len(text)
            yield text
            left -= len(data)
            if left <= 0:
                return
        if not self.documents:
            raise SourceError(f"{self.corpus.id}: its train split has no usable text")

    def _texts(self) -> Iterator[str]:
        described = load_corpus(self.store, self.corpus)
        held_out = load_held_out(self.store, self.corpus)
        for file in described.files:
            with verified_url(self.store, self.corpus, file) as url:
                for rows in read_rows(url, file.format, described.text_column, None):
                    usable = [row.text for row in rows if row.reason is None]
                    texts = [t for t in usable if text_split(digest(t), described.validation_fraction) == "train"]
                    for text, held in zip(texts, held_out.find([text.encode() for text in texts]), strict=True):
                        if held:
                            self.left_out += 1
                        else:
                            yield text


def train(root: str, corpus: Record, config: TokenizerConfig) -> tuple[bytes, dict[str, int]]:
    """``tokenizer.json`` learned from a corpus artifact, and how much text it was learned from.

    Raises SourceError or ArtifactError where a file is damaged or has changed, and where there is no usable text.
    """
    text = TrainingText(Store(root), corpus)
    data = tokenizer.train(text, config)
    counts = {"trained_documents": text.documents, "trained_characters": text.characters}
    return data, counts | {"left_out_for_test": text.left_out}
