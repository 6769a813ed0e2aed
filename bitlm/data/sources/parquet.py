"""Text out of parquet files, streamed by row groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.data.sources.textbatch import (
    BATCH_BYTES,
    EMPTY_TEXT,
    INVALID_UNICODE,
    NO_TEXT,
    STREAM_BYTES,
    Fault,
    TextBatch,
    damaged,
    text_bounds,
)

FETCH_BYTES = 32 * 2**20  # of text whose row groups are fetched at a time; a much larger row group is streamed
_DAMAGE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError)


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """Raises SourceError naming the file where it is not parquet, or is cut off."""
    with storage.open_read(url) as file:
        yield _parquet(url, file, pre_buffer=not storage.is_local(url))


def parquet_batches(url: str, text_column: str, id_column: str | None, groups: range | None) -> Iterator[TextBatch]:
    """The rows of some row groups (all where None). Raises SourceError naming the file and the row for damage."""
    columns = [text_column] if id_column is None else [text_column, id_column]
    with open_parquet(url) as parquet:
        groups = range(parquet.num_row_groups) if groups is None else groups
        row = sum(parquet.metadata.row_group(i).num_rows for i in range(groups.start))
        for batch in _record_batches(url, parquet, groups, columns):
            ids = pa.nulls(len(batch), pa.string()) if id_column is None else _ids(batch.column(id_column))
            texts = _binary(batch.column(text_column), pa.large_binary())
            for start, end in _cuts(text_bounds(texts)):
                yield _checked(np.arange(row + start, row + end), ids[start:end], texts[start:end])
            row += len(batch)


def _record_batches(url: str, parquet: pq.ParquetFile, groups: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for together, rows, size in _bundles(parquet.metadata, groups, columns[0]):
        chosen = {"row_groups": together, "columns": columns, "use_threads": False}
        chosen["batch_size"] = min(rows, max(1, rows * BATCH_BYTES // max(size, 1)))
        try:
            if size <= 2 * FETCH_BYTES:
                yield from parquet.iter_batches(**chosen)
            else:
                with storage.open_read(url) as file:
                    yield from _parquet(url, file, pre_buffer=False, buffer_size=STREAM_BYTES).iter_batches(**chosen)
        except _DAMAGE as error:
            raise damaged(url, _damaged_row(parquet, together, columns), error) from error


def _bundles(metadata: pq.FileMetaData, groups: range, column: str) -> Iterator[tuple[list[int], int, int]]:
    """(row groups, rows, bytes of the column) of row groups that are read together; one that is large stands alone."""
    leaf = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
    together, rows, size = [], 0, 0
    for group in groups:
        described = metadata.row_group(group)
        more = described.column(leaf).total_uncompressed_size
        if together and size + more > FETCH_BYTES:
            yield together, rows, size
            together, rows, size = [], 0, 0
        together, rows, size = [*together, group], rows + described.num_rows, size + more
    if rows:
        yield together, rows, size


def _damaged_row(parquet: pq.ParquetFile, groups: list[int], columns: list[str]) -> int:
    """The first row of the first row group that cannot be read."""
    for group in groups:
        try:
            for _ in parquet.iter_batches(1024, row_groups=[group], columns=columns, use_threads=False):
                pass
        except _DAMAGE:
            break
    return sum(parquet.metadata.row_group(i).num_rows for i in range(group))


def _parquet(url: str, file: Any, **options: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, **options)
    except _DAMAGE as error:
        raise damaged(url, None, error) from error


def _cuts(bounds: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where to cut rows with these byte offsets, so that no piece of several rows has more than 2·BATCH_BYTES."""
    start, count = 0, len(bounds) - 1
    while start < count:
        end = int(np.searchsorted(bounds, bounds[start] + 2 * BATCH_BYTES, side="right")) - 1
        end = min(max(end, start + 1), count)
        yield start, end
        start = end


def _binary(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Strings of any type as bytes, so that one value that is not UTF-8 does not spoil its neighbours."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.binary())
    return column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()).cast(kind)


def _ids(column: pa.Array) -> pa.StringArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return pa.array([None if id is None else str(id) for id in column.to_pylist()], pa.string())
    ids = _binary(column, pa.binary())
    try:
        return ids.cast(pa.string())
    except pa.ArrowInvalid:
        shown = [None if id is None else id.decode(errors="backslashreplace") for id in ids.to_pylist()]
        return pa.array(shown, pa.string())


def _checked(rows: np.ndarray, ids: pa.StringArray, texts: pa.LargeBinaryArray) -> TextBatch:
    valid = texts.is_valid().to_numpy(zero_copy_only=False)
    faults = {
        place: Fault(EMPTY_TEXT, "") if valid[place] else Fault(NO_TEXT, None)
        for place in np.flatnonzero(np.diff(text_bounds(texts)) == 0).tolist()
    }
    try:
        strings = texts.cast(pa.large_string())
    except pa.ArrowInvalid:
        faults |= _not_unicode(texts)
        strings = None
    if faults or not valid.all():
        usable = np.ones(len(rows), dtype=bool)
        usable[list(faults)] = False
        kept = pc.if_else(pa.array(usable), texts if strings is None else strings, None)
        strings = kept.cast(pa.large_string())
    return TextBatch(rows, ids, strings, dict(sorted(faults.items())))


def _not_unicode(texts: pa.LargeBinaryArray) -> dict[int, Fault]:
    faults = {}
    for place, text in enumerate(texts.to_pylist()):
        try:
            (text or b"").decode()
        except UnicodeError:
            faults[place] = Fault(INVALID_UNICODE, text.decode(errors="backslashreplace"))
    return faults
