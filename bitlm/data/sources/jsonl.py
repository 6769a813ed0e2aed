"""Text out of jsonl files, plain, gzipped or compressed by zstd."""

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from bitlm import storage
from bitlm.data.sources.files import compression_of
from bitlm.data.sources.textbatch import (
    BATCH_BYTES,
    EMPTY_TEXT,
    INVALID_JSON,
    INVALID_UNICODE,
    NO_TEXT,
    NOT_TEXT,
    STREAM_BYTES,
    Fault,
    TextBatch,
    damaged,
    is_blank,
)
from bitlm.errors import SourceError

BATCH_ROWS = 4096
LINE_BYTES = 2**29  # the longest line; a few bytes of a compressed file can stand for any number
LINES_BYTES = 2**18  # decompressed at a time
JSON_NAME = re.compile(r"\.json(\.\w+)?$", re.IGNORECASE)
_DAMAGE = (EOFError, zlib.error, OSError)  # gzip and Arrow raise OSError


def jsonl_objects(url: str) -> Iterator[tuple[int, Any]]:
    """(row, value) for every line that is not blank; for one that is not JSON the value is the ValueError.

    Raises SourceError naming the file, and the row where it is damaged or longer than ``LINE_BYTES``, also for a .json
    file that is one array.
    """
    row, first = -1, True
    with storage.open_read(url, read_ahead=STREAM_BYTES) as raw, _decompressed(url, raw) as lines:
        try:
            for row, line in enumerate(iter(lambda: lines.readline(LINE_BYTES + 1), b"")):
                if len(line) > LINE_BYTES:
                    raise SourceError(
                        f"{storage.redact(url)}: row {row} is longer than {LINE_BYTES // 2**20} MiB: split that text"
                    )
                if line.strip():
                    if first:
                        _refuse_array(url, line)
                        first = False
                    yield row, _parsed(line)
        except _DAMAGE as error:
            raise damaged(url, row + 1, error) from error


def jsonl_batches(url: str, text_column: str, id_column: str | None) -> Iterator[TextBatch]:
    """The rows of the lines that are not blank. Raises SourceError naming the file and the row for damage."""
    rows: list[int] = []
    ids: list[str | None] = []
    texts: list[bytes | None] = []
    faults: dict[int, Fault] = {}
    size = 0

    def batch() -> TextBatch:
        strings = pa.array(texts, pa.large_binary()).cast(pa.large_string())
        return TextBatch(np.array(rows, dtype=np.int64), pa.array(ids, pa.string()), strings, faults)

    for row, value in jsonl_objects(url):
        id = value.get(id_column) if isinstance(value, dict) and id_column is not None else None
        text = _usable(value, text_column)
        if isinstance(text, Fault):
            faults[len(rows)] = text
        rows.append(row)
        ids.append(_usable_id(id))
        texts.append(None if isinstance(text, Fault) else text)
        size += len(texts[-1] or b"")
        if len(rows) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch()
            rows, ids, texts, faults, size = [], [], [], {}, 0
    if rows:
        yield batch()


def _refuse_array(url: str, first_line: bytes) -> None:
    if JSON_NAME.search(storage.file_name(url)) and first_line.lstrip().startswith(b"["):
        raise SourceError(
            f"{storage.redact(url)} holds one JSON array; write each of its objects in a line instead: jq -c .[]"
        )


def _decompressed(url: str, raw: BinaryIO) -> BinaryIO:
    match compression_of(url):
        case "gzip":
            return gzip.GzipFile(fileobj=raw)
        case "zstd":
            return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"), LINES_BYTES)
    return raw


def _usable(value: Any, text_column: str) -> bytes | Fault:
    """The text of a line of jsonl, as UTF-8."""
    if not isinstance(value, dict):
        return Fault(INVALID_JSON, None)
    text = value.get(text_column)
    if text is None:
        return Fault(NO_TEXT, None)
    if not isinstance(text, str):
        return Fault(NOT_TEXT, json.dumps(text))
    if is_blank(text):
        return Fault(EMPTY_TEXT, text)
    try:
        return text.encode()
    except UnicodeError:
        return Fault(INVALID_UNICODE, shown(text))


def _usable_id(value: Any) -> str | None:
    """The id of a row, None where there is none: a blank one says as little as NaN, a list or an object."""
    if isinstance(value, str):
        return None if is_blank(value) else shown(value)
    if isinstance(value, float):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, int) else None


def shown(text: str) -> str:
    """Text with its lone surrogates written out."""
    return text.encode(errors="backslashreplace").decode()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error
