"""The tokens stage: text to packed code shards, one Ray task for each unit."""

import time
from collections import Counter
from typing import Any

import ray

from bitlm import storage
from bitlm.artifacts.publish import map_in_threads
from bitlm.artifacts.work import Work
from bitlm.data.shards import encode
from bitlm.data.shards import units as tokens
from bitlm.data.shards.encode import UnitResult
from bitlm.data.shards.tokenizer import INFO_FILE, TokenizerInfo
from bitlm.data.shards.units import TOKEN_SPLITS, TOKENS_FILE, Job, Unit, UnitRecord
from bitlm.data.sources.corpus import load_corpus
from bitlm.data.sources.files import check_unchanged
from bitlm.errors import SourceError
from bitlm.steps import Step
from bitlm_tasks.run import Run, stage_task
from bitlm_tasks.spread import RETRIES, in_flight, spread

TOTALS = ("documents", "tokens", "filling", "text_bytes", "bytes")

encode_unit = ray.remote(max_retries=RETRIES)(encode.encode_unit)


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    """Write the shards, the rejected rows, the units' records and ``tokens.json``; what an earlier run finished is
    taken as it is.

    Raises SourceError for a source file that has changed, and where no row of the corpus is usable.
    """
    corpus_record, tokenizer_record = run.input(step, "corpus"), run.input(step, "tokenizer")
    info = TokenizerInfo.model_validate_json(run.store.read_bytes(tokenizer_record, INFO_FILE))
    corpus = load_corpus(run.store, corpus_record)
    if corpus.kind == "reference":
        map_in_threads(check_unchanged, corpus.files)
    job = Job(
        root=run.store.root,
        out=work.out,
        format=step.format,
        corpus=corpus_record,
        tokenizer=tokenizer_record,
        text_column=corpus.text_column,
        id_column=corpus.id_column,
        validation_fraction=corpus.validation_fraction,
        engine=run.config.tokens.execution.engine,
    )
    units = tokens.plan(corpus.files, run.config.tokens.unit_bytes)
    run.ray()
    records = _encode(units, job, run)
    summary = _summary(records, info)
    if not summary["splits"]["train"]["tokens"]:
        raise SourceError(f"{corpus_record.id}: none of its {summary['documents_in']:,} rows is usable for training")
    storage.write_atomic(storage.join(work.out, TOKENS_FILE), tokens.to_json(summary))
    _keep_only(records, work)
    return _metrics(summary)


class Meter:
    """How far a run is, and how fast; what an earlier run had finished counts as done, not as speed."""

    def __init__(self, units: list[Unit]) -> None:
        self._units, self._bytes = len(units), sum(unit.bytes for unit in units)
        self._started = time.monotonic()
        self._done: Counter[str] = Counter()
        self._fresh: Counter[str] = Counter()

    def add(self, result: UnitResult) -> None:
        record = result.record
        shards = [shard for entries in record.shards.values() for shard in entries]
        counts = Counter(
            units=1,
            bytes=record.unit.bytes,
            documents=record.documents_in,
            tokens=sum(s.tokens for s in shards),
            text=sum(s.text_bytes for s in shards),
            rejected=sum(record.rejected.values()),
        )
        self._done.update(counts)
        if result.seconds is not None:
            self._fresh.update(counts)

    @property
    def fraction(self) -> float:
        return self._done["bytes"] / max(self._bytes, 1)

    def __str__(self) -> str:
        done, fresh = self._done, self._fresh
        line = f"{done['units']:,} of {self._units:,} units, {done['documents']:,} documents, {done['tokens']:,} tokens"
        if done["rejected"]:
            line += f", {done['rejected']:,} rows rejected"
        seconds = time.monotonic() - self._started
        if not fresh["bytes"] or not seconds:
            return line
        line += f" · {fresh['documents'] / seconds:,.0f} documents/s, {fresh['tokens'] / seconds / 1e6:.2f}M tokens/s"
        left = (self._bytes - done["bytes"]) / fresh["bytes"] * seconds
        return line + f", {fresh['text'] / seconds / 1e6:.1f} MB/s · {duration(left)} left"


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s``, ``5 h 7 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _encode(units: list[Unit], job: Job, run: Run) -> list[UnitRecord]:
    """The records of all units, in order."""
    records: dict[int, UnitRecord] = {}
    meter = Meter(units)

    def finished(index: int, result: UnitResult) -> None:
        records[index] = result.record
        meter.add(result)
        run.progress.update(meter.fraction, str(meter))

    shared = ray.put(job)
    limit = in_flight(run.config.tokens.execution.num_workers)
    spread(encode_unit, ((unit, shared) for unit in units), limit, finished)
    return [records[index] for index in range(len(units))]


def _keep_only(records: list[UnitRecord], work: Work) -> None:
    """Tell the digests of what the units wrote, and remove what none of them did (a run of another version of the
    code may have left it)."""
    for record in records:
        work.digests |= {file.path: file.digest for file in record.written}
    belonging = {*work.digests, *(tokens.record_path(record.unit) for record in records), TOKENS_FILE}
    for path in storage.list_files(work.out):
        if path not in belonging:
            storage.remove_tree(storage.join(work.out, path))


def _summary(records: list[UnitRecord], info: TokenizerInfo) -> dict[str, Any]:
    """``tokens.json``; its counts are those of the units, added up."""
    splits = {}
    for split in TOKEN_SPLITS:
        shards = [entry.model_dump(mode="json") for record in records for entry in record.shards.get(split, ())]
        totals = {key: sum(shard[key] for shard in shards) for key in TOTALS}
        splits[split] = {"shards": shards, **totals}
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
    documents_in = sum(record.documents_in for record in records)
    assert documents_in == sum(split["documents"] for split in splits.values()) + rejected.total()
    return {
        "num_bits": info.num_bits,
        "end_id": info.end_id,
        "vocab_size": info.vocab_size,
        "splits": splits,
        "rejected": dict(sorted(rejected.items())),
        "documents_in": documents_in,
        "units": len(records),
    }


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "documents_in": summary["documents_in"],
        "rejected": sum(summary["rejected"].values()),
        "rejected_by_reason": summary["rejected"],
    }
    for split, totals in summary["splits"].items():
        metrics |= {f"{split}_{key}": value for key, value in totals.items() if key != "shards"}
        metrics[f"{split}_shards"] = len(totals["shards"])
    return metrics


task = stage_task("tokens", build)
