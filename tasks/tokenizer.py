"""The tokenizer stage: train byte-level BPE on the corpus, or take a ready tokenizer over."""

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.work import Work
from bitlm.data.shards import tokenizer
from bitlm.data.sources import corpus
from bitlm.data.sources.corpus import load_corpus
from bitlm.data.sources.rows import Row, read_rows
from bitlm.data.sources.splits import digest, text_split
from bitlm.data.sources.state import read_tokenizer
from bitlm.errors import SourceError
from bitlm.steps import Step
from bitlm_tasks.run import Run, stage_task

TRAIN_CHARACTERS = 256 * 2**20  # the first so many characters are enough to learn merges from


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    """Write ``tokenizer.json`` and ``tokenizer_info.json``."""
    config = run.config.tokenizer
    metrics: dict[str, Any] = {}
    if config.source == "train":
        data = tokenizer.train(_texts(run, run.input(step, "corpus"), metrics), config)
    else:
        data = read_tokenizer(config)
    info = tokenizer.describe(data, config)
    storage.write_atomic(storage.join(work.out, tokenizer.TOKENIZER_FILE), data)
    storage.write_atomic(storage.join(work.out, tokenizer.INFO_FILE), info.model_dump_json(indent=1).encode())
    return {"vocab_size": info.vocab_size, "num_bits": info.num_bits, **metrics}


def _texts(run: Run, record: Record, metrics: dict[str, Any]) -> Iterator[str]:
    """Texts of the train split in order; fills in how many there were."""
    described = load_corpus(run.store, record)
    with run.store.local_file(record, corpus.EXCLUDED_FILE) as path:
        excluded = set(pq.read_table(path)["text_sha256"].to_pylist())
    metrics |= {"trained_documents": 0, "trained_characters": 0}
    for file in described.files:
        for rows in _read_file(run, record, file, described.text_column):
            for row in rows:
                if row.reason is not None:
                    continue
                key = digest(row.text)
                if text_split(key, described.validation_fraction) != "train" or key.hex() in excluded:
                    continue
                metrics["trained_documents"] += 1
                metrics["trained_characters"] += len(row.text)
                yield row.text
            if metrics["trained_characters"] >= TRAIN_CHARACTERS:
                return
            run.progress.update(0.0, f"{metrics['trained_characters']:,} characters read")
    if metrics["trained_documents"] == 0:
        raise SourceError(f"{record.id}: its train split has no usable text")


def _read_file(run: Run, record: Record, file: corpus.TextFile, text_column: str) -> Iterator[list[Row]]:
    with corpus.verified_url(run.store, record, file) as url:
        yield from read_rows(url, file.format, text_column, None)


task = stage_task("tokenizer", build)
