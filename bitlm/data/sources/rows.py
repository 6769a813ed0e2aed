"""Rows of source files, checked, in batches or one by one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bitlm import storage
from bitlm.data.sources.jsonl import jsonl_batches
from bitlm.data.sources.parquet import parquet_batches
from bitlm.data.sources.textbatch import TextBatch


class Row(NamedTuple):
    """Row ``row`` (0-based) of a file. ``reason``: why it is unusable; ``text`` then is what can be shown of it."""

    row: int
    id: str | None
    text: str | None
    reason: str | None


def derived_id(digest: bytes) -> str:
    """The id of a row that has none: a function of its text (sha256 of the UTF-8 bytes)."""
    return f"sha256:{digest.hex()[:32]}"


def read_batches(
    url: str, kind: str, text_column: str, id_column: str | None, row_groups: range | None = None
) -> Iterator[TextBatch]:
    """The rows of a file, or of some row groups of a parquet file. What is in memory at a time is bounded, whatever
    the size of the file and of its row groups, by ``FETCH_BYTES`` and the longest rows.

    Raises SourceError naming the file and the row for damage to the file itself.
    """
    if kind == "jsonl":
        return jsonl_batches(url, text_column, id_column)
    batches = parquet_batches(url, text_column, id_column, row_groups)
    return batches if storage.is_local(url) else _ahead(batches)


def read_rows(
    url: str, kind: str, text_column: str, id_column: str | None, row_groups: range | None = None
) -> Iterator[list[Row]]:
    """The same as one object for each row."""
    for batch in read_batches(url, kind, text_column, id_column, row_groups):
        columns = zip(batch.rows.tolist(), batch.ids.to_pylist(), batch.strings(), strict=True)
        rows = [Row(row, id, text, None) for row, id, text in columns]
        for place, fault in batch.faults.items():
            rows[place] = rows[place]._replace(text=fault.shown, reason=fault.reason)
        yield rows


def _ahead(batches: Iterator[TextBatch]) -> Iterator[TextBatch]:
    """The same batches; the next one is fetched while the caller works on the last."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
