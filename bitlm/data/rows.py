"""Rows of source files, checked one by one: each is either a usable text or says why it is not."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.errors import SourceError

ROWS_PER_BATCH = 256
NO_TEXT, EMPTY_TEXT, INVALID_UNICODE = "no_text", "empty_text", "invalid_unicode"
NOT_TEXT, INVALID_JSON = "not_text", "invalid_json"
_PARQUET_DAMAGE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError)
_GZIP_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error)


class Row(NamedTuple):
    """Row ``row`` (0-based) of a file. ``reason``: why it is unusable; ``text`` then is what can be shown of it."""

    row: int
    id: str | None
    text: str | None
    reason: str | None


def derived_id(digest: bytes) -> str:
    """The id of a row that has none: a function of its text (sha256 of the UTF-8 bytes)."""
    return f"sha256:{digest.hex()[:32]}"


def read_rows(
    url: str, kind: str, text_column: str, id_column: str | None, row_groups: range | None = None
) -> Iterator[list[Row]]:
    """Batches of checked rows of a file, or of some row groups of a parquet file, in order.

    Raises SourceError naming the file and the row for damage to the file itself.
    """
    if kind == "jsonl":
        return _jsonl_rows(url, text_column, id_column)
    return _parquet_rows(url, text_column, id_column, row_groups)


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """Raises SourceError naming the file where it is not parquet, or is cut off."""
    fs, path = storage.filesystem(url)
    try:
        file = fs.open(path, "rb")
    except FileNotFoundError:
        raise SourceError(f"{storage.redact(url)} is gone: restore it or run the corpus stage again") from None
    with file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=True)
        except _PARQUET_DAMAGE as error:
            raise _damaged(url, None, error) from error
        yield parquet


def jsonl_objects(url: str) -> Iterator[tuple[int, Any]]:
    """(row, value) for every line that is not blank; for one that is not JSON the value is the ValueError."""
    fs, path = storage.filesystem(url)
    row = -1
    with fs.open(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if url.endswith(".gz") else raw as lines:
        try:
            for row, line in enumerate(lines):
                if line.strip():
                    yield row, _parsed(line)
        except _GZIP_DAMAGE as error:
            raise _damaged(url, row + 1, error) from error


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error


def _parquet_rows(url: str, text_column: str, id_column: str | None, row_groups: range | None) -> Iterator[list[Row]]:
    columns = [text_column] if id_column is None else [text_column, id_column]
    with open_parquet(url) as parquet:
        groups = range(parquet.num_row_groups) if row_groups is None else row_groups
        row = sum(parquet.metadata.row_group(i).num_rows for i in range(groups.start))
        for batch in _batches(parquet, groups, columns, url, row):
            texts = _binary(batch.column(text_column))
            ids = batch.column(id_column).to_pylist() if id_column is not None else [None] * len(texts)
            pairs = zip(texts, ids, strict=True)
            yield [_row(row + i, None if id is None else str(id), text) for i, (text, id) in enumerate(pairs)]
            row += batch.num_rows


def _batches(
    parquet: pq.ParquetFile, groups: range, columns: list[str], url: str, row: int
) -> Iterator[pa.RecordBatch]:
    """One row group after the other, so that one is in memory at a time and damage is met where it is."""
    try:
        for group in groups:
            for batch in parquet.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=columns):
                row += batch.num_rows
                yield batch
    except _PARQUET_DAMAGE as error:
        raise _damaged(url, row, error) from error


def _binary(column: pa.Array) -> list[bytes | None]:
    """Text as bytes, so that one value that is not UTF-8 does not spoil its neighbours."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()).to_pylist()


def _jsonl_rows(url: str, text_column: str, id_column: str | None) -> Iterator[list[Row]]:
    batch = []
    for row, found in jsonl_objects(url):
        if not isinstance(found, dict):
            batch.append(Row(row, None, None, INVALID_JSON))
        else:
            id = found.get(id_column) if id_column is not None else None
            batch.append(_row(row, None if id is None else str(id), found.get(text_column)))
        if len(batch) == ROWS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _row(row: int, id: str | None, text: Any) -> Row:
    if text is None:
        return Row(row, id, None, NO_TEXT)
    if not isinstance(text, str | bytes):
        return Row(row, id, json.dumps(text), NOT_TEXT)
    if not text:
        return Row(row, id, "", EMPTY_TEXT)
    try:
        if isinstance(text, bytes):
            return Row(row, id, text.decode(), None)
        text.encode()
    except UnicodeError:
        shown = text.decode(errors="backslashreplace") if isinstance(text, bytes) else ascii(text)[1:-1]
        return Row(row, id, shown, INVALID_UNICODE)
    return Row(row, id, text, None)


def _damaged(url: str, row: int | None, error: Exception) -> SourceError:
    where = "" if row is None else f" at row {row}"
    told = str(error).strip().split("\n", 1)[0]
    return SourceError(f"{storage.redact(url)} is damaged{where} ({told}): fetch it again, or leave it out")
