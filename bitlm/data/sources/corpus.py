"""The corpus artifact's ``source.json``: which files hold the text, what is in them, and how they are split."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config.stages import Frozen
from bitlm.data.sources.docstrings import STANDARD, Docstring
from bitlm.data.sources.files import OWNED, SourceFile, check_unchanged
from bitlm.data.sources.jsonl import jsonl_objects, shown
from bitlm.data.sources.parquet import column_bytes, open_parquet
from bitlm.data.sources.rows import derived_id, read_rows
from bitlm.data.sources.splits import digest
from bitlm.data.sources.textbatch import NO_TEXT, NOT_TEXT
from bitlm.errors import SourceError

PART_BYTES = 8 * 2**20  # of text, per file written here
GROUP_BYTES = 2**20  # of text, per row group
DESCRIBED_LINES = 100  # of a jsonl file: those whose keys count as its columns
MOST_SHOWN = 20  # columns that an error lists
ID_COLUMN = "id"
SOURCE_FILE = "source.json"
EXCLUDED_FILE = "excluded.parquet"
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
    """Check that a file can be read; the first of the columns is the text. Whether there is such a column, and whether
    a row is usable, is asked when the rows are read.

    Raises SourceError naming the file for a damaged one, and for one that has several columns of one of these names.
    """
    if file.format == "jsonl":
        return TextFile(**file.model_dump(), columns=_jsonl_columns(file))
    with open_parquet(file.url) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
    for column in (*columns, ID_COLUMN):
        if schema.names.count(column) > 1:
            raise SourceError(f"{storage.redact(file.url)} has several columns {column!r}: rename all but one")
    sizes = enumerate(column_bytes(metadata, columns[0], range(metadata.num_row_groups)))
    return TextFile(
        **file.model_dump(),
        rows=metadata.num_rows,
        row_groups=tuple(RowGroup(rows=metadata.row_group(i).num_rows, bytes=size) for i, size in sizes),
        columns={field.name: str(field.type) for field in schema},
    )


def check_usable(files: Sequence[TextFile], column: str, place: str, others: Sequence[str] = ()) -> None:
    """Raises SourceError, with the counts and the nearest name of a column, unless at least one row of the files has
    text in a column. ``place`` says whose files they are, ``others`` are columns that hold something else. Reads no
    further than the first such row."""
    counts: Counter[str] = Counter()
    for file in sorted(files, key=lambda file: column not in file.columns):
        if file.format == "parquet" and column not in file.columns:
            counts[NO_TEXT] += file.rows
            continue
        for rows in read_rows(file.url, file.format, column, None):
            if any(row.reason is None for row in rows):
                return
            counts.update(row.reason for row in rows)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    about_column = _types(files, column) if NOT_TEXT in counts else _nearest(files, column, others)
    raise SourceError(
        f"{place}: none of the {counts.total():,} rows of its {len(files):,} file{'s' * (len(files) > 1)} has text in "
        f"column {column!r}" + (f" ({reasons})" if reasons else "") + about_column
    )


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


def _jsonl_columns(file: SourceFile) -> dict[str, str]:
    """Keys of the first lines, with the names of the Python types of their first values."""
    columns: dict[str, str] = {}
    for _, row in islice(jsonl_objects(file.url), DESCRIBED_LINES):
        if isinstance(row, dict):
            columns = {**{shown(key): type(value).__name__ for key, value in row.items()}, **columns}
    return columns


def _types(files: Sequence[TextFile], column: str) -> str:
    types = sorted({file.columns[column] for file in files if column in file.columns})
    return f"; the column holds {', '.join(types)}" if types else ""


def _nearest(files: Sequence[TextFile], column: str, others: Sequence[str]) -> str:
    """The name that is nearest if no file has the column."""
    names = list(dict.fromkeys(name for file in files for name in file.columns))
    plain = {name.strip().lower(): name for name in reversed(names) if name not in others}
    if column in names or not plain:
        return ""
    (nearest,) = difflib.get_close_matches(column.strip().lower(), plain, n=1, cutoff=0.0)
    all_names = ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
    return f"; the nearest column is {plain[nearest]!r} (there are: {all_names})"
