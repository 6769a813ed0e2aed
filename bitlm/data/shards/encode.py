"""One unit of the tokens stage: from the text column of its files to packed shards, by columns all the way."""

import hashlib
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bitlm import storage
from bitlm.artifacts.store import Store
from bitlm.data.shards.engine import Engine, TextEncoder
from bitlm.data.shards.output import Clock, Documents, Output
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, TokenizerInfo
from bitlm.data.shards.units import TOKEN_SPLITS, Job, Unit, UnitRecord, complete, record_path
from bitlm.data.sources.corpus import verified_url
from bitlm.data.sources.files import check_unchanged
from bitlm.data.sources.held_out import HeldOut, load_held_out
from bitlm.data.sources.rows import derived_id, read_batches
from bitlm.data.sources.splits import fractions
from bitlm.data.sources.textbatch import TextBatch
from bitlm.errors import ArtifactError

MOST_SAMPLED = 64  # texts of a batch


@dataclass(frozen=True)
class UnitResult:
    """``seconds``: CPU time by phase, None where the unit had been finished before; ``peak_bytes``: the most memory
    that the process has held so far."""

    record: UnitRecord
    seconds: dict[str, float] | None
    peak_bytes: int


@dataclass(frozen=True)
class Kit:
    """What a worker keeps between units."""

    encoder: TextEncoder
    info: TokenizerInfo
    held_out: HeldOut
    validation_fraction: float


def encode_unit(unit: Unit, job: Job) -> UnitResult:
    """Make a unit's shards and its record, or return the record where it is complete already.

    Raises SourceError naming file and row for a source file that is damaged or has changed, ArtifactError for a damaged
    input artifact, and where the two engines disagree.
    """
    clock = Clock()
    pa.set_memory_pool(pa.system_memory_pool())  # reading takes half the CPU time of that with Arrow's own pool
    with clock("load"):
        kit = load_kit(job)
    finished = complete(unit, job, kit.info.sha256)
    if finished is not None:
        return UnitResult(finished, None, _peak())
    store = Store(job.root)

    def put(path: str, data: bytes) -> None:
        storage.write_atomic(storage.join(job.out, path), data)

    output = Output(unit.index, kit.info, clock, put)
    for part in unit.parts:
        with verified_url(store, job.corpus, part) as url:
            batches = read_batches(url, part.format, job.text_column, job.id_column, part.groups)
            for batch in clock.each("read", batches):
                encode_batch(batch, part.path, kit, output)
        if not part.owned:
            check_unchanged(part)  # what was read is what was listed
    output.finish()
    record = UnitRecord(
        format=job.format,
        unit=unit,
        corpus=job.corpus.fingerprint,
        tokenizer_sha256=kit.info.sha256,
        documents_in=output.documents_in,
        shards=output.shards,
        rejected=output.rejected,
        written=tuple(output.written),
    )
    assert record.documents_in == output.documents + sum(record.rejected.values()), unit
    put(record_path(unit), record.model_dump_json().encode())
    return UnitResult(record, dict(clock.seconds), _peak())


def encode_batch(batch: TextBatch, file: str, kit: Kit, output: Output) -> None:
    """Encode the usable rows of a batch of ``file`` into the output's shards; the others are rejected there.

    Raises ArtifactError where the two engines disagree.
    """
    clock = output.clock
    usable = np.ones(len(batch.rows), dtype=bool)
    usable[list(batch.faults)] = False
    places = np.flatnonzero(usable)
    with clock("text"):
        texts = batch.strings()[places]
    with clock("hash"):
        contents = batch.contents(places)
        digests = [hashlib.sha256(content).digest() for content in contents]
        keys = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 4).astype(np.uint64)
    with clock("held out"):
        tested = kit.held_out.find(contents)
    output.documents_in += len(batch.rows)
    if batch.faults or tested.any():
        output.reject(batch, places[tested].tolist(), file)
    validation = fractions(keys[:, 0]) < kit.validation_fraction
    lengths = np.diff(batch.bounds())
    for split, chosen in zip(TOKEN_SPLITS, (~tested & ~validation, ~tested & validation), strict=True):
        some = np.flatnonzero(chosen)
        if len(some):
            ids = _ids(batch.ids, places[some], some, digests)
            documents = Documents(
                texts=texts[some].tolist(),
                text_bytes=int(lengths[places[some]].sum()),
                keys=keys[some, 3],
                ids=ids,
                rows=batch.rows[places[some]],
                file=file,
            )
            _encode_documents(documents, split, kit, output)


def _encode_documents(documents: Documents, split: str, kit: Kit, output: Output) -> None:
    with output.clock("encode"):
        encoded = kit.encoder.encode(documents.texts)
    with output.clock("compare"):
        due = output.due(split, documents.text_bytes)
        wrong, compared = kit.encoder.difference(documents.texts, encoded, _sample(documents.keys), due)
        output.sampled(split, compared)
    if wrong is not None:
        raise ArtifactError(
            f"{documents.file}: fastokens and tokenizers encode document {documents.ids[wrong].as_py()} (row "
            f"{documents.rows[wrong]}) differently; set tokens.execution.engine=reference, and report the text"
        )
    output.add(split, documents, encoded)


@lru_cache(maxsize=1)
def _kit(root: str, corpus: str, tokenizer: str, engine: Engine, validation_fraction: float) -> Kit:
    store = Store(root)
    corpus_record, tokenizer_record = store.load(corpus), store.load(tokenizer)
    info = TokenizerInfo.model_validate_json(store.read_bytes(tokenizer_record, INFO_FILE))
    encoder = TextEncoder(store.read_bytes(tokenizer_record, TOKENIZER_FILE), engine)
    return Kit(encoder, info, load_held_out(store, corpus_record), validation_fraction)


def load_kit(job: Job) -> Kit:
    """The verified tokenizer and the test documents; kept for the next unit of the same job. Raises ArtifactError."""
    return _kit(job.root, job.corpus.id, job.tokenizer.id, job.engine, job.validation_fraction)


def _sample(keys: np.ndarray) -> np.ndarray:
    """Places of the ``MOST_SAMPLED`` least keys (uint64 [n]), in the order of their keys."""
    least = np.argpartition(keys, MOST_SAMPLED)[:MOST_SAMPLED] if len(keys) > MOST_SAMPLED else np.arange(len(keys))
    return least[np.argsort(keys[least])]


def _ids(ids: pa.StringArray, places: np.ndarray, order: np.ndarray, digests: Sequence[bytes]) -> pa.StringArray:
    """Ids at some places of a batch; a row without one has it from its text, whose digest is at ``order``."""
    chosen = ids.take(pa.array(places))
    if not chosen.null_count:
        return chosen
    return pc.coalesce(chosen, pa.array([derived_id(digests[place]) for place in order.tolist()], pa.string()))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
