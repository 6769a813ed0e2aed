"""The summarization set: documents with one-sentence summaries, in train, validation and test."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.data.sources.corpus import (
    SUMMARY_SCHEMA,
    Summaries,
    TextFile,
    load_corpus,
    parquet_bytes,
    verified_url,
    write_owned,
)
from bitlm.data.sources.docstrings import english_score, normalized
from bitlm.data.sources.parquet import open_parquet
from bitlm.data.sources.splits import digest, fraction

SUMMARY_SPLITS = ("train", "validation", "test")
TEST_FRACTION, VALIDATION_FRACTION = 0.05, 0.03
SUMMARY_WORDS = range(4, 31)
DOCUMENT_WORDS = range(20, 401)
MIN_DOCUMENT_SCORE = 0.15  # share of function words: lists of parameters have fewer
# A paragraph with one of these is not prose: doctests, directives, fields, underlines, tables, and section titles.
_NOT_PROSE = re.compile(
    r"^\s*(?:>>>|\.\. |:\w+|[-=~^*+#]{3,}|@\w+|\||\$ )|"
    r"^\s*(?:args|arguments|param(?:eter)?s?|returns?|yields?|raises|examples?|notes?|see also|attributes|references|"
    r"keyword arguments|inputs?|outputs?|usage|warnings?)\b[^a-z]*$",
    re.IGNORECASE | re.MULTILINE,
)


class Example(NamedTuple):
    document: str
    summary: str
    id: str


def from_docstrings(texts: Iterable[str]) -> dict[str, list[Example]]:
    """Body → summary line of the docstrings that have both, by split; of equal bodies the first counts."""
    examples: dict[str, list[Example]] = {split: [] for split in SUMMARY_SPLITS}
    seen = set()
    for text in texts:
        pair = summarize(text)
        if pair is None:
            continue
        document, summary = pair
        key = digest(normalized(document))
        if key not in seen:
            seen.add(key)
            examples[document_split(document)].append(Example(document, summary, _derived_id(document)))
    return examples


def summarize(docstring: str) -> tuple[str, str] | None:
    """(document, summary) of a docstring of the form of PEP 257: a summary line, a blank line, a body.

    The document is the prose with which the body begins. None where there is no such form, the summary is not a
    sentence, or either is too short or too long.
    """
    summary, _, rest = docstring.partition("\n")
    blank, _, body = rest.partition("\n")
    summary = summary.strip()
    if blank.strip() or not summary.endswith(".") or len(summary.split()) not in SUMMARY_WORDS:
        return None
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", body):
        if _NOT_PROSE.search(paragraph):
            break
        paragraphs.append(paragraph)
    document = "\n\n".join(paragraphs).strip()
    if len(document.split()) not in DOCUMENT_WORDS or english_score(document) < MIN_DOCUMENT_SCORE:
        return None
    return document, summary


def document_split(document: str) -> str:
    """The split of a document by the hash of its text; spacing does not matter."""
    share = fraction(digest(normalized(document)))
    if share < TEST_FRACTION:
        return "test"
    return "validation" if share < TEST_FRACTION + VALIDATION_FRACTION else "train"


class Contained:
    """Finds texts that hold one of the documents, spacing aside. Documents too short to mean anything are left out.

    Each document is filed under its longest inner word: a text that holds the document holds that word as a whole, so
    only a few texts are searched.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        self._by_word: dict[str, list[str]] = {}
        for document in documents:
            words = document.split()
            if len(words) >= DOCUMENT_WORDS.start:
                self._by_word.setdefault(max(words[1:-1], key=len), []).append(" ".join(words))

    def __call__(self, text: str) -> bool:
        words = text.split()
        candidates = self._by_word.keys() & set(words)
        if not candidates:
            return False
        whole = " ".join(words)
        return any(document in whole for word in candidates for document in self._by_word[word])


def write(examples: list[Example], out: str, split: str) -> TextFile:
    table = pa.table([list(column) for column in zip(*examples, strict=True)], schema=SUMMARY_SCHEMA)
    return write_owned(parquet_bytes(table), out, f"summaries/{split}.parquet", ("document", "summary"))


def read_examples(store: Store, record: Record, split: str, limit: int | None = None) -> Iterator[Example]:
    """Examples of a split of a corpus artifact in order, the first ``limit`` if given.

    Raises ArtifactError or SourceError, naming the file, where it is missing, damaged or changed.
    """
    described = load_corpus(store, record).summaries
    return islice(split_examples(described, split, lambda file: verified_url(store, record, file)), limit)


def _source_url(file: TextFile) -> AbstractContextManager[str]:
    return nullcontext(file.url)


def split_examples(
    described: Summaries, split: str, url_of: Callable[[TextFile], AbstractContextManager[str]] = _source_url
) -> Iterator[Example]:
    """Rows of a split that have a document and a summary, in order; a row without id gets one derived from its text."""
    for file in getattr(described, split):
        with url_of(file) as url, open_parquet(url) as parquet:
            columns = [name for name in SUMMARY_SCHEMA.names if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(1024, columns=columns):
                for example in map(_example, batch.to_pylist()):
                    if example is not None and (not described.hash_split or document_split(example.document) == split):
                        yield example


def _example(row: dict[str, Any]) -> Example | None:
    document, summary, id = row["document"], row["summary"], row.get("id")
    if not document or not summary:
        return None
    return Example(document, summary, str(id) if id else _derived_id(document))


def _derived_id(document: str) -> str:
    return digest(normalized(document)).hex()[:16]
