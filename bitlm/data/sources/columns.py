"""Arrow columns of any type as checked texts and ids."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bitlm.data.sources.textbatch import (
    EMPTY_TEXT,
    INVALID_UNICODE,
    NO_TEXT,
    NOT_TEXT,
    Fault,
    TextBatch,
    is_blank,
    text_bounds,
)

# Bytes are read as UTF-8: some writers leave out the mark that tells text from bytes.
_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)
_NUMBER = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
_HEAD_BYTES = 16


def is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _TEXT)


def plain_column(batch: pa.RecordBatch, name: str | None) -> pa.Array:
    """A column as an array without dictionary or extension type; nulls where there is no such column."""
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows)
    column = batch.column(name)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def as_bytes(column: pa.Array) -> pa.LargeBinaryArray:
    """Text of any type as bytes, so that one value that is not UTF-8 does not spoil its neighbours."""
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.binary_view())
    return column.cast(pa.large_binary())


def ids_of(column: pa.Array) -> pa.StringArray:
    """Text and numbers as strings; null for anything else, for a blank text and for NaN."""
    if is_text(column.type):
        ids = as_bytes(column)
        filled = np.ones(len(ids), dtype=bool)
        filled[_blank(ids)] = False
        ids = pc.if_else(pa.array(filled), ids, None)
        try:
            return ids.cast(pa.string())
        except pa.ArrowInvalid:
            shown = [None if id is None else id.decode(errors="backslashreplace") for id in ids.to_pylist()]
            return pa.array(shown, pa.string())
    if not any(is_kind(column.type) for is_kind in _NUMBER):
        return pa.nulls(len(column), pa.string())
    numbers = column.to_pylist()
    return pa.array([None if id is None or id != id else str(id) for id in numbers], pa.string())  # NaN is not itself


def checked(rows: np.ndarray, ids: pa.StringArray, texts: pa.LargeBinaryArray) -> TextBatch:
    """Rows whose texts these bytes are."""
    valid = texts.is_valid().to_numpy(zero_copy_only=False)
    faults = {place: Fault(NO_TEXT, None) for place in np.flatnonzero(~valid).tolist()}
    faults |= {place: Fault(EMPTY_TEXT, texts[place].as_py().decode()) for place in _blank(texts) if valid[place]}
    try:
        strings = texts.cast(pa.large_string())
    except pa.ArrowInvalid:
        faults |= _not_unicode(texts)
        strings = None
    if faults:
        usable = np.ones(len(rows), dtype=bool)
        usable[list(faults)] = False
        kept = pc.if_else(pa.array(usable), texts if strings is None else strings, None)
        strings = kept.cast(pa.large_string())
    return TextBatch(rows, ids, strings, dict(sorted(faults.items())))


def unusable(rows: np.ndarray, ids: pa.StringArray, column: pa.Array) -> TextBatch:
    """Rows whose column of text has another type; what is shown of a value is its type."""
    not_text = Fault(NOT_TEXT, str(column.type))
    valid = column.is_valid().to_pylist()
    faults = {place: not_text if is_valid else Fault(NO_TEXT, None) for place, is_valid in enumerate(valid)}
    return TextBatch(rows, ids, pa.nulls(len(rows), pa.large_string()), faults)


def _blank(texts: pa.LargeBinaryArray) -> list[int]:
    """Places of the texts that are empty or blank; nulls may be among them.

    Most texts begin with a printable ASCII character, and for most others the first characters tell.
    """
    bounds = text_bounds(texts)
    filled = np.flatnonzero(np.diff(bounds))
    empty = np.flatnonzero(np.diff(bounds) == 0).tolist()
    if not len(filled):
        return empty
    first = np.frombuffer(texts.buffers()[2], np.uint8)[bounds[filled]]
    suspects = filled[(first <= ord(" ")) | (first >= 0x7F)].tolist()
    return empty + [place for place in suspects if _is_blank_utf8(texts[place].as_buffer())]


def _is_blank_utf8(text: pa.Buffer) -> bool:
    head = text[:_HEAD_BYTES].to_pybytes().decode(errors="ignore")
    return is_blank(head) and is_blank(text.to_pybytes().decode(errors="replace"))


def _not_unicode(texts: pa.LargeBinaryArray) -> dict[int, Fault]:
    faults = {}
    for place, text in enumerate(texts.to_pylist()):
        try:
            (text or b"").decode()
        except UnicodeError:
            faults[place] = Fault(INVALID_UNICODE, text.decode(errors="backslashreplace"))
    return faults
