"""What the tokens stage would come to for a source, from a sample of it that goes through the stage's own code."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bitlm.data.shards.encode import Kit, encode_batch
from bitlm.data.shards.output import Clock, Output
from bitlm.data.sources.corpus import TextFile, check_usable, describe_file
from bitlm.data.sources.files import SourceFile, compression_of
from bitlm.data.sources.rows import read_batches

SAMPLE_FILES, SAMPLE_GROUPS = 8, 2  # files, evenly spaced, and row groups of each, of which one batch is encoded
COMPRESSION = 3  # bytes of jsonl to a compressed byte: English text


@dataclass(frozen=True)
class Estimate:
    """``core_seconds`` of one worker's CPU after its start, reading included; ``source_bytes`` are those of the files,
    ``text_bytes`` and ``documents`` those of all rows. The fields ``sample_…`` tell what was measured."""

    files: int
    source_bytes: int
    documents: int
    text_bytes: int
    tokens: int
    output_bytes: int
    core_seconds: float
    start_seconds: float
    workers: int
    sample_files: int
    sample_documents: int
    sample_text_bytes: int

    @property
    def wall_seconds(self) -> float:
        return self.start_seconds + self.core_seconds / self.workers

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "core_hours": self.core_seconds / 3600, "wall_seconds": self.wall_seconds}


@dataclass(frozen=True)
class TextSource:
    """Files of text to estimate, those of a corpus artifact or of a source that has none yet."""

    files: Sequence[SourceFile]
    text_column: str
    id_column: str | None


def estimate(source: TextSource, kit: Kit, start_seconds: float, workers: int | None) -> Estimate:
    """The same sample for the same files; the times are measured here and now, on one core. ``workers``: by default as
    many as this machine has cores.

    Raises SourceError where a sampled file is damaged, and where none of their rows is usable.
    """
    files = source.files
    some = [files[i] for i in _spaced(len(files), SAMPLE_FILES)]
    chosen = [file if isinstance(file, TextFile) else describe_file(file, (source.text_column,)) for file in some]
    picked = [(file, groups) for file in chosen for groups in _picked(file)]
    _measure(picked[:1], source, kit)  # not counted: at first every word is new to the engine
    sample = _measure(picked, source, kit)
    if not sample.tokens:
        check_usable(chosen, source.text_column, f"the sample of {len(chosen)} of {len(files):,} files")
    source_bytes = sum(file.bytes for file in files)
    scale = source_bytes / sum(file.bytes for file in chosen)
    text_bytes = scale * sum(map(_size, chosen)) * sample.text_bytes / max(1, sample.size)
    share = text_bytes / max(1, sample.text_bytes)
    rows = [file.rows for file in chosen]
    return Estimate(
        files=len(files),
        source_bytes=source_bytes,
        text_bytes=round(text_bytes),
        documents=round(share * sample.documents if None in rows else scale * sum(rows)),
        tokens=round(share * sample.tokens),
        output_bytes=round(share * sample.output_bytes),
        core_seconds=share * sample.seconds,
        start_seconds=start_seconds,
        workers=workers or os.cpu_count() or 1,
        sample_files=len(chosen),
        sample_documents=sample.documents,
        sample_text_bytes=sample.text_bytes,
    )


@dataclass
class _Sample:
    """``size`` is what was known before of the size of what was then read."""

    size: float = 0.0
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    output_bytes: int = 0
    seconds: float = 0.0


def _measure(picked: Sequence[tuple[TextFile, range | None]], source: TextSource, kit: Kit) -> _Sample:
    """Encode the first batch of each of the picked row groups."""
    pa.set_memory_pool(pa.system_memory_pool())  # as the stage does
    sample, clock, sizes = _Sample(), Clock(), []
    output = Output(0, kit.info, clock, lambda _, data: sizes.append(len(data)))
    for file, groups in picked:
        batches = read_batches(file.url, file.format, source.text_column, source.id_column, groups)
        batch = next(clock.each("read", batches), None)
        if batch is None:
            continue
        encode_batch(batch, file.path, kit, output)
        text = int(batch.bounds()[-1] - batch.bounds()[0])
        group = None if groups is None else file.row_groups[groups.start]
        sample.size += text if group is None else group.bytes * len(batch.rows) / group.rows
        sample.text_bytes += text
    output.finish()
    sample.documents, sample.output_bytes = output.documents_in, sum(sizes)
    sample.tokens = sum(entry.tokens for entries in output.shards.values() for entry in entries)
    sample.seconds = sum(clock.seconds.values())
    return sample


def _picked(file: TextFile) -> list[range | None]:
    if file.row_groups is None:
        return [None]
    filled = [i for i, group in enumerate(file.row_groups) if group.rows]
    return [range(filled[i], filled[i] + 1) for i in _spaced(len(filled), SAMPLE_GROUPS)]


def _size(file: TextFile) -> int:
    """Of the text column; of a jsonl file only that of the file is known."""
    if file.row_groups is None:
        return file.bytes * (COMPRESSION if compression_of(file.url) else 1)
    return sum(group.bytes for group in file.row_groups)


def _spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of 0 … count - 1, evenly spaced."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})
