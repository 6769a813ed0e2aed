"""The summarization set: documents with one-sentence summaries, in train, validation and test."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import NamedTuple

import pyarrow as pa

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.data.sources.corpus import (
    ID_COLUMN,
    SUMMARY_SCHEMA,
    Summaries,
    TextFile,
    load_corpus,
    parquet_bytes,
    verified_url,
    write_owned,
)
from bitlm.data.sources.docstrings import english_score, normalized
from bitlm.data.sources.held_out import HeldOut, batched, load_held_out
from bitlm.data.sources.rows import read_rows
from bitlm.data.sources.splits import digest, fraction

SUMMARY_COLUMNS = ("document", "summary")
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


def trainable(examples: Iterable[Example], held_out: HeldOut) -> Iterator[Example]:
    """The examples of which neither the document nor the summary is or holds a test document."""
    for batch in batched(examples):
        held = held_out.find([example.document.encode() for example in batch])
        held |= held_out.find([example.summary.encode() for example in batch])
        yield from (example for example, left_out in zip(batch, held, strict=True) if not left_out)


def write(examples: list[Example], out: str, split: str) -> TextFile:
    table = pa.table([list(column) for column in zip(*examples, strict=True)], schema=SUMMARY_SCHEMA)
    return write_owned(parquet_bytes(table), out, f"summaries/{split}.parquet", SUMMARY_COLUMNS)


def read_examples(store: Store, record: Record, split: str, limit: int | None = None) -> Iterator[Example]:
    """Examples of a split of a corpus artifact in order, the first ``limit`` if given.

    Raises ArtifactError or SourceError, naming the file, where it is missing, damaged or changed.
    """
    described = load_corpus(store, record).summaries
    examples = split_examples(described, split, lambda file: verified_url(store, record, file))
    return islice(examples, limit)


def read_trainable(store: Store, record: Record, split: str, limit: int | None = None) -> Iterator[Example]:
    """The same without those that are not ``trainable``."""
    return islice(trainable(read_examples(store, record, split), load_held_out(store, record)), limit)


def _source_url(file: TextFile) -> AbstractContextManager[str]:
    return nullcontext(file.url)


def split_examples(
    described: Summaries, split: str, url_of: Callable[[TextFile], AbstractContextManager[str]] = _source_url
) -> Iterator[Example]:
    """The examples of a split, in order."""
    return (row for row in split_rows(described, split, url_of) if isinstance(row, Example))


def split_rows(
    described: Summaries, split: str, url_of: Callable[[TextFile], AbstractContextManager[str]] = _source_url
) -> Iterator[Example | str]:
    """The rows of a split, in order: an example, or why the row is none. With ``hash_split`` the rows that are none
    belong to train. A row without id gets one derived from its document.

    Raises SourceError naming the file and the row for damage to the file itself.
    """
    for file in getattr(described, split):
        with url_of(file) as url:
            for row in _rows(url, file.format):
                if not described.hash_split or _hash_split(row) == split:
                    yield row


def _hash_split(row: Example | str) -> str:
    return "train" if isinstance(row, str) else document_split(row.document)


def _rows(url: str, kind: str) -> Iterator[Example | str]:
    """Each column is judged as text to pretrain on is."""
    documents = chain.from_iterable(read_rows(url, kind, "document", ID_COLUMN))
    summaries = chain.from_iterable(read_rows(url, kind, "summary", None))
    for document, summary in zip(documents, summaries, strict=True):
        if document.reason is not None:
            yield f"document {document.reason}"
        elif summary.reason is not None:
            yield f"summary {summary.reason}"
        else:
            yield Example(document.text, summary.text, document.id or _derived_id(document.text))


def _derived_id(document: str) -> str:
    return digest(normalized(document)).hex()[:16]
