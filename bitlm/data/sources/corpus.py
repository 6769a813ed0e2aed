"""The corpus artifact's ``source.json``: which files hold the text, what is in them, and how they are split."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config.stages import Frozen
from bitlm.data.sources.docstrings import STANDARD, Docstring
from bitlm.data.sources.files import OWNED, SourceFile, check_unchanged
from bitlm.data.sources.jsonl import jsonl_objects
from bitlm.data.sources.parquet import open_parquet
from bitlm.data.sources.rows import derived_id, read_rows
from bitlm.data.sources.splits import digest
from bitlm.errors import SourceError

PART_BYTES = 8 * 2**20  # of text, per file written here
GROUP_BYTES = 2**20  # of text, per row group
SOURCE_FILE = "source.json"
EXCLUDED_FILE = "excluded.parquet"
EXCLUDED_SCHEMA = pa.schema([("text_sha256", pa.string())])
# FineWeb's columns; text made here has them all, files from outside need only the text.
TEXT_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)
SUMMARY_SCHEMA = pa.schema([("document", pa.string()), ("summary", pa.string()), ("id", pa.string())])


class RowGroup(Frozen):
    """``bytes`` of the text column, uncompressed."""

    rows: int
    bytes: int


class TextFile(SourceFile):
    """A checked file; ``url`` is relative to the artifact that owns it. jsonl has no row count and no row groups."""

    rows: int | None = None
    row_groups: tuple[RowGroup, ...] | None = None
    columns: dict[str, str]


class Summaries(Frozen):
    """Files of the summarization set. With ``hash_split`` the splits share their files, and the hash of a document
    decides which split it is in."""

    train: tuple[TextFile, ...]
    validation: tuple[TextFile, ...]
    test: tuple[TextFile, ...]
    hash_split: bool


class Corpus(Frozen):
    """``source.json``. ``kind`` says whether the text is in the artifact or is referred to."""

    kind: Literal["owned", "reference"]
    files: tuple[TextFile, ...]
    text_column: str
    id_column: str | None
    validation_fraction: float
    summaries: Summaries
    test_documents: str = EXCLUDED_FILE

    def to_json(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode()


def load_corpus(store: Store, record: Record) -> Corpus:
    """The description of a corpus artifact, verified. Raises ArtifactError."""
    return Corpus.model_validate_json(store.read_bytes(record, SOURCE_FILE))


def write_text(docstrings: Sequence[Docstring], out: str) -> list[TextFile]:
    """Write docstrings, in order, as parquet files below ``out``/text, in row groups of about ``GROUP_BYTES``."""
    files = []
    for number, part in enumerate(_cut(docstrings, PART_BYTES)):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, TEXT_SCHEMA, compression="zstd") as writer:
            for group in _cut(part, GROUP_BYTES):
                writer.write_table(
                    pa.Table.from_pylist([_text_row(docstring) for docstring in group], schema=TEXT_SCHEMA)
                )
        files.append(write_owned(sink.getvalue().to_pybytes(), out, f"text/part-{number:05d}.parquet", ("text",)))
    return files


def write_owned(data: bytes, out: str, path: str, columns: tuple[str, ...]) -> TextFile:
    """Write a parquet file of the artifact itself and describe it."""
    url = storage.join(out, path)
    storage.write_atomic(url, data)
    tag = f"{OWNED}{hashlib.sha256(data).hexdigest()}"
    described = describe_file(SourceFile(url=url, path=path, format="parquet", bytes=len(data), etag=tag), columns)
    return described.model_copy(update={"url": path})


def write_excluded(texts: Iterable[str], out: str) -> None:
    """The sha256 of texts that must not be trained on."""
    digests = sorted({digest(text).hex() for text in texts})
    storage.write_atomic(storage.join(out, EXCLUDED_FILE), parquet_bytes(pa.table([digests], schema=EXCLUDED_SCHEMA)))


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@contextmanager
def verified_url(store: Store, record: Record, file: SourceFile) -> Iterator[str]:
    """The URL to read a file of the corpus from, after a check that it is what the artifact says.

    A local copy may be removed after the context. Raises ArtifactError for a damaged file of the artifact, SourceError
    for a file from outside that has changed.
    """
    if file.owned:
        with store.local_file(record, file.url) as path:
            yield path
    else:
        check_unchanged(file)
        yield file.url


def describe_file(file: SourceFile, columns: tuple[str, ...]) -> TextFile:
    """Check that a file can be read and has the columns, the first of which is the text.

    Raises SourceError naming the file for a damaged one, and for a missing column or one that is not text.
    """
    if file.format == "jsonl":
        return TextFile(**file.model_dump(), columns=_jsonl_columns(file, columns))
    with open_parquet(file.url) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
    for column in columns:
        _check_column(file.url, column, schema)
    leaf = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(columns[0])
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return TextFile(
        **file.model_dump(),
        rows=metadata.num_rows,
        row_groups=tuple(RowGroup(rows=g.num_rows, bytes=g.column(leaf).total_uncompressed_size) for g in groups),
        columns={field.name: str(field.type) for field in schema},
    )


def check_usable(files: list[TextFile], text_column: str, source: str) -> None:
    """Raises SourceError unless at least one row has text; reads no further than the first such row."""
    for file in files:
        for rows in read_rows(file.url, file.format, text_column, None):
            if any(row.reason is None for row in rows):
                return
    raise SourceError(f"{storage.redact(source)}: no row of its {len(files)} files has text in column {text_column!r}")


def _cut(docstrings: Sequence[Docstring], most_bytes: int) -> Iterator[list[Docstring]]:
    """Consecutive pieces of about the given number of bytes of text."""
    piece: list[Docstring] = []
    size = 0
    for docstring in docstrings:
        piece.append(docstring)
        size += len(docstring.text.encode())
        if size >= most_bytes:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _text_row(docstring: Docstring) -> dict[str, Any]:
    name, _, version = docstring.package.partition("==")
    return {
        "text": docstring.text,
        "id": derived_id(digest(docstring.text)),
        "dump": docstring.package,
        "url": f"pkg:{'generic' if name == STANDARD else 'pypi'}/{name}@{version}#{docstring.file}:{docstring.line}",
        "file_path": docstring.file,
        "language": "en",
        "language_score": docstring.score,
    }


def _check_column(url: str, column: str, schema: pa.Schema) -> None:
    if column not in schema.names:
        raise SourceError(f"{storage.redact(url)} has no column {column!r}{_nearest(column, schema.names)}")
    if not _is_text(schema.field(column).type):
        raise SourceError(f"{storage.redact(url)}: column {column!r} holds {schema.field(column).type}, not text")


def _jsonl_columns(file: SourceFile, columns: tuple[str, ...]) -> dict[str, str]:
    """Keys of the first line that holds an object, with the names of their Python types."""
    for _, row in jsonl_objects(file.url):
        if not isinstance(row, dict):
            continue
        for column in columns:
            if column not in row:
                raise SourceError(f"{storage.redact(file.url)} has no key {column!r}{_nearest(column, list(row))}")
        return {key: type(value).__name__ for key, value in row.items()}
    raise SourceError(f"{storage.redact(file.url)}: no line of it is a JSON object")


def _nearest(column: str, columns: list[str]) -> str:
    close = difflib.get_close_matches(column, columns, n=1, cutoff=0.0)
    return f"; the nearest is {close[0]!r} (all: {', '.join(columns)})" if close else ""


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
