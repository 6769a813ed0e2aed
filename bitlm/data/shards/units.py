"""Units of the tokens stage: which parts of which source files become which shards, and the records that say so.

A unit's files are a function of the unit and its job alone. Its record is written last, in one step: a unit without one
counts for nothing and is simply done again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from bitlm import storage
from bitlm.artifacts.ids import RelativePath
from bitlm.artifacts.record import FileEntry, Record
from bitlm.config.stages import Frozen
from bitlm.data.shards.engine import Engine
from bitlm.data.sources.corpus import TextFile
from bitlm.data.sources.files import SourceFile

TOKENS_FILE = "tokens.json"
TOKEN_SPLITS = ("train", "validation")
MOST_PARTS = 64  # of a unit: with more tiny files it would take long, and spread badly


class Part(SourceFile):
    """Row groups ``row_groups[0]`` … ``row_groups[1] - 1`` of a file, or the whole file where that is None.

    ``text_bytes`` is what is known of the text's size before it is read; jsonl has neither ``first_row`` nor ``rows``.
    """

    row_groups: tuple[int, int] | None
    first_row: int | None
    rows: int | None
    text_bytes: int

    @property
    def groups(self) -> range | None:
        return None if self.row_groups is None else range(*self.row_groups)


class Unit(Frozen):
    index: int
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return sum(part.text_bytes for part in self.parts)


class ShardEntry(FileEntry):
    """A shard in ``tokens.json``; ``docs`` is its side file, ``unit`` the unit whose record says where it came from."""

    documents: int
    tokens: int
    filling: int
    text_bytes: int
    docs: RelativePath
    unit: int = Field(ge=0)


class UnitRecord(Frozen):
    """What came of a unit (``units/NNNNN.json``). ``documents_in`` = Σ documents of the shards + Σ rejected.

    ``format`` is the number of the stage's format, ``corpus`` the fingerprint of the corpus artifact.
    """

    format: int
    unit: Unit
    corpus: str
    tokenizer_sha256: str
    documents_in: int
    shards: dict[str, tuple[ShardEntry, ...]]
    rejected: dict[str, int]
    written: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Job:
    """What all units share; small and plain, so that it can travel to any worker. ``out`` is the artifact to be."""

    root: str
    out: str
    format: int
    corpus: Record
    tokenizer: Record
    text_column: str
    id_column: str | None
    validation_fraction: float
    engine: Engine = "fast"


def plan(files: Sequence[TextFile], unit_bytes: int) -> list[Unit]:
    """Cut files, one after the other, into units of at least ``unit_bytes`` of text where their row groups allow it.

    Small files share a unit, ``MOST_PARTS`` at most.
    """
    units: list[Unit] = []
    parts: list[Part] = []
    size = 0
    for file in files:
        first, row, taken, rows = 0, 0, 0, 0
        sizes = [(file.rows, file.bytes)] if file.row_groups is None else [(g.rows, g.bytes) for g in file.row_groups]
        for index, (group_rows, group_bytes) in enumerate(sizes):
            taken, rows = taken + group_bytes, rows + (group_rows or 0)
            enough = size + taken >= unit_bytes
            if enough or index == len(sizes) - 1:
                parts.append(_part(file, (first, index + 1), row, rows, taken))
                size += taken
                first, row, taken, rows = index + 1, row + rows, 0, 0
            if enough or len(parts) == MOST_PARTS:
                units.append(Unit(index=len(units), parts=tuple(parts)))
                parts, size = [], 0
    return [*units, Unit(index=len(units), parts=tuple(parts))] if parts else units


def _part(file: TextFile, groups: tuple[int, int], first_row: int, rows: int, text_bytes: int) -> Part:
    source = {name: getattr(file, name) for name in SourceFile.model_fields}
    if file.row_groups is None:
        return Part(**source, row_groups=None, first_row=None, rows=None, text_bytes=text_bytes)
    return Part(**source, row_groups=groups, first_row=first_row, rows=rows, text_bytes=text_bytes)


def record_path(unit: Unit) -> str:
    return f"units/{unit.index:05d}.json"


def complete(unit: Unit, job: Job, tokenizer_sha256: str) -> UnitRecord | None:
    """The record of a finished unit, if there is one and its files are what it says."""
    data = storage.read_if_exists(storage.join(job.out, record_path(unit)))
    if data is None:
        return None
    record = UnitRecord.model_validate_json(data)
    same = (job.format, unit, job.corpus.fingerprint, tokenizer_sha256)
    if (record.format, record.unit, record.corpus, record.tokenizer_sha256) != same:
        return None
    return record if all(_intact(storage.join(job.out, file.path), file) for file in record.written) else None


def _intact(url: str, file: FileEntry) -> bool:
    """By every byte on a local disk, which may have lost some in a crash. A store keeps an object whole."""
    if not storage.exists(url):
        return False
    if not storage.is_local(url):
        return storage.size(url) == file.bytes
    return storage.sha256(url) == (file.bytes, file.sha256)


def to_json(summary: dict[str, Any]) -> bytes:
    return json.dumps(summary, indent=1, sort_keys=True).encode()
