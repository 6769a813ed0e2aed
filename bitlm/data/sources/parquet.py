"""Text out of parquet files, streamed by row groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bitlm import storage
from bitlm.data.sources.columns import as_bytes, checked, ids_of, is_text, plain_column, unusable
from bitlm.data.sources.textbatch import BATCH_BYTES, STREAM_BYTES, TextBatch, damaged, text_bounds

ROW_BYTES = 64  # that a row counts for at least, so that a batch of rows without text is bounded too
FETCH_BYTES = 32 * 2**20  # of text whose row groups are fetched at a time; a much larger row group is streamed
_DAMAGE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)  # the last: a column's name


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """Raises SourceError naming the file where it is not parquet, or is cut off."""
    with storage.open_read(url) as file:
        yield _parquet(url, file, pre_buffer=not storage.is_local(url))


def parquet_batches(url: str, text_column: str, id_column: str | None, groups: range | None) -> Iterator[TextBatch]:
    """The rows of some row groups (all where None). Raises SourceError naming the file and the row for damage."""
    with open_parquet(url) as parquet:
        columns = [name for name in (text_column, id_column) if name in parquet.schema_arrow.names]
        groups = range(parquet.num_row_groups) if groups is None else groups
        row = sum(parquet.metadata.row_group(i).num_rows for i in range(groups.start))
        for batch in _record_batches(url, parquet, groups, columns):
            rows = np.arange(row, row + batch.num_rows)
            ids, column = ids_of(plain_column(batch, id_column)), plain_column(batch, text_column)
            if is_text(column.type):
                texts = as_bytes(column)
                for start, end in _cuts(text_bounds(texts)):
                    yield checked(rows[start:end], ids[start:end], texts[start:end])
            else:
                yield unusable(rows, ids, column)
            row += batch.num_rows


def _record_batches(url: str, parquet: pq.ParquetFile, groups: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for together, rows, size in _bundles(parquet.metadata, groups, columns):
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


def column_bytes(metadata: pq.FileMetaData, column: str, groups: range) -> list[int]:
    """The uncompressed size of a column in row groups, of all its parts if it is nested; 0 if there is none."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    parts = [i for i, path in enumerate(paths) if f"{path}.".startswith(f"{column}.")]
    return [sum(metadata.row_group(i).column(part).total_uncompressed_size for part in parts) for i in groups]


def _bundles(metadata: pq.FileMetaData, groups: range, columns: list[str]) -> Iterator[tuple[list[int], int, int]]:
    """(row groups, rows, bytes of the first column) of row groups that are read together; a large one stands alone."""
    sizes = column_bytes(metadata, columns[0], groups) if columns else [0] * len(groups)
    together, rows, size = [], 0, 0
    for group, text_bytes in zip(groups, sizes, strict=True):
        more_rows = metadata.row_group(group).num_rows
        more = max(ROW_BYTES * more_rows, text_bytes)
        if together and size + more > FETCH_BYTES:
            yield together, rows, size
            together, rows, size = [], 0, 0
        together, rows, size = [*together, group], rows + more_rows, size + more
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
        parquet = pq.ParquetFile(file, **options)
        _ = parquet.schema_arrow.names, [parquet.schema.column(i).path for i in range(parquet.metadata.num_columns)]
        return parquet
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
