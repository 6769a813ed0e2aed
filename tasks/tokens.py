"""The tokens stage: text to packed code shards, one Ray task for each unit."""

from collections import Counter
from typing import Any

import ray

from bitlm import storage
from bitlm.artifacts.work import Work
from bitlm.data import tokens
from bitlm.data.corpus import load_corpus
from bitlm.data.tokenizer import INFO_FILE, TokenizerInfo
from bitlm.data.tokens import SPLITS, TOKENS_FILE, Job, UnitRecord
from bitlm.errors import SourceError
from bitlm.steps import Step
from tasks.run import Run, stage_task
from tasks.spread import RETRIES, in_flight, spread

TOTALS = ("documents", "tokens", "filling", "text_bytes", "bytes")

encode_unit = ray.remote(max_retries=RETRIES)(tokens.encode_unit)


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    """Write the shards, the rejected rows and ``tokens.json``; what an earlier run finished is taken as it is.

    Raises SourceError where no row of the corpus is usable.
    """
    corpus_record, tokenizer_record = run.input(step, "corpus"), run.input(step, "tokenizer")
    with open(run.store.checked(tokenizer_record, INFO_FILE), "rb") as file:
        info = TokenizerInfo.model_validate_json(file.read())
    job = Job(
        root=run.store.root, out=work.out, scratch=work.scratch, corpus=load_corpus(run.store, corpus_record),
        corpus_record=corpus_record, tokenizer_record=tokenizer_record,
    )  # fmt: skip
    units = tokens.plan(job.corpus.files, run.config.tokens.unit_bytes)
    run.ray()
    records = _encode(units, job, run)
    summary = _summary(records, info)
    if not summary["splits"]["train"]["tokens"]:
        raise SourceError(f"{corpus_record.id}: none of its {summary['documents_in']:,} rows is usable for training")
    storage.write_atomic(storage.join(work.out, TOKENS_FILE), tokens.to_json(summary))
    return _metrics(summary)


def _encode(units: list[tokens.Unit], job: Job, run: Run) -> list[UnitRecord]:
    """The records of all units, in order."""
    records: dict[int, UnitRecord] = {}
    total = sum(unit.bytes for unit in units)
    done: Counter[str] = Counter()

    def finished(index: int, record: UnitRecord) -> None:
        records[index] = record
        done["bytes"] += record.unit.bytes
        done["tokens"] += sum(shard.tokens for shard in record.shards.values())
        done["rejected"] += sum(record.rejected.values())
        text = f"{len(records):,} of {len(units):,} units, {done['tokens']:,} tokens"
        text += f", {done['rejected']:,} rows rejected" if done["rejected"] else ""
        run.progress.update(done["bytes"] / max(total, 1), text)

    shared = ray.put(job)
    limit = in_flight(run.config.tokens.execution.num_workers)
    spread(encode_unit, ((unit, shared) for unit in units), limit, finished)
    return [records[index] for index in range(len(units))]


def _summary(records: list[UnitRecord], info: TokenizerInfo) -> dict[str, Any]:
    """``tokens.json``; its counts are those of the units, added up."""
    splits = {}
    for split in SPLITS:
        shards = [record.shards[split].model_dump(mode="json") for record in records if split in record.shards]
        totals = {key: sum(shard[key] for shard in shards) for key in TOTALS}
        splits[split] = {"shards": shards, **totals}
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
    documents_in = sum(record.documents_in for record in records)
    assert documents_in == sum(split["documents"] for split in splits.values()) + rejected.total()
    return {
        "num_bits": info.num_bits, "end_id": info.end_id, "vocab_size": info.vocab_size, "splits": splits,
        "rejected": dict(sorted(rejected.items())), "documents_in": documents_in,
    }  # fmt: skip


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"documents_in": summary["documents_in"]}
    for split, totals in summary["splits"].items():
        metrics |= {f"{split}_{key}": value for key, value in totals.items() if key != "shards"}
        metrics[f"{split}_shards"] = len(totals["shards"])
    return metrics | {"rejected": sum(summary["rejected"].values()), "rejected_by_reason": summary["rejected"]}


task = stage_task("tokens", build)
