"""The corpus stage: docstrings are walked by Ray tasks and written; files from outside are checked and referred to."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray

from bitlm import storage
from bitlm.artifacts.work import Work
from bitlm.config import CorpusConfig
from bitlm.data.sources import corpus, docstrings
from bitlm.data.sources.corpus import Corpus, Summaries, TextFile
from bitlm.data.sources.docstrings import Docstring, normalized
from bitlm.data.sources.files import SourceFile, describe_left_out
from bitlm.data.sources.held_out import HeldOut, batched, held_out_table, write_held_out
from bitlm.data.sources.state import DOCSTRINGS, Source, resolve, summaries_source, text_source
from bitlm.data.summaries import examples as summaries
from bitlm.data.summaries.examples import SUMMARY_COLUMNS, SUMMARY_SPLITS
from bitlm.data.summaries.named_splits import refer
from bitlm.errors import SourceError
from bitlm.steps import Step
from bitlm_tasks.run import Run, stage_task
from bitlm_tasks.spread import RETRIES, in_flight, spread

extract = ray.remote(max_retries=RETRIES)(docstrings.extract)
describe_file = ray.remote(max_retries=RETRIES)(corpus.describe_file)


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    """Write ``source.json``, ``excluded.parquet``, and the text and summaries that come from docstrings."""
    run.ray()
    config = run.config.corpus
    walked = _walk(config, run) if DOCSTRINGS in (config.source, config.summaries) else []
    if config.summaries == DOCSTRINGS:
        summary_files, test_documents, metrics = _write_summaries(walked, work)
    else:
        summary_files, test_documents, metrics = _refer_summaries(step, run)
    write_held_out(test_documents, work.out)
    owned = config.source == DOCSTRINGS
    if owned:
        held = HeldOut(test_documents).find([docstring.text.encode() for docstring in walked]).tolist()
        kept = [docstring for docstring, left_out in zip(walked, held, strict=True) if not left_out]
        files = corpus.write_text(kept, work.out)
        metrics["left_out_for_test"] = len(walked) - len(kept)
        metrics["characters"] = sum(len(docstring.text) for docstring in kept)
    else:
        files = _refer_text(step, run, metrics)
    described = Corpus(
        kind="owned" if owned else "reference",
        files=tuple(files),
        text_column="text" if owned else config.text_column,
        id_column=corpus.ID_COLUMN,
        validation_fraction=config.validation_fraction,
        summaries=summary_files,
    )
    storage.write_atomic(storage.join(work.out, corpus.SOURCE_FILE), described.to_json())
    rows = [file.rows for file in files]
    documents = {} if None in rows else {"documents": sum(rows)}
    return {**documents, "files": len(files), "bytes": sum(file.bytes for file in files), **metrics}


def _walk(config: CorpusConfig, run: Run) -> list[Docstring]:
    """English docstrings without repetitions, in order of package, path and line."""
    chunks = list(docstrings.chunks(docstrings.packages()))
    waiting: dict[int, list[Docstring]] = {}
    kept: dict[str, Docstring] = {}
    done = 0

    def finished(index: int, chunk: list[Docstring]) -> None:
        nonlocal done
        waiting[index] = chunk
        while done in waiting:
            for docstring in waiting.pop(done):
                kept.setdefault(normalized(docstring.text), docstring)
            done += 1
        run.progress.update(done / len(chunks), f"{len(kept):,} docstrings")

    def wanted() -> Iterator[tuple[docstrings.Package]]:
        for chunk in chunks:
            if config.max_documents is not None and len(kept) >= config.max_documents:
                return
            yield (chunk,)

    spread(extract, wanted(), in_flight(None), finished)
    return list(kept.values())[: config.max_documents]


def _refer_text(step: Step, run: Run, metrics: dict[str, Any]) -> list[TextFile]:
    """Raises SourceError naming the file for a damaged one, and where there is no usable row."""
    config = run.config.corpus
    listed = _resolve(text_source(config), step.identity["source_state"], run, metrics)
    files = _describe(listed, (config.text_column,), run)
    corpus.check_usable(files, config.text_column, storage.redact(config.source))
    return files


def _write_summaries(walked: list[Docstring], work: Work) -> tuple[Summaries, pa.Table, dict[str, Any]]:
    """(description, test documents, metrics) of the set made from docstrings."""
    examples = summaries.from_docstrings(docstring.text for docstring in walked)
    test_documents = held_out_table(example.document for example in examples["test"])
    found = sum(map(len, examples.values()))
    for split in ("train", "validation"):
        examples[split] = list(summaries.trainable(examples[split], HeldOut(test_documents)))
    for split in SUMMARY_SPLITS:
        if not examples[split]:
            raise SourceError(
                f"corpus.summaries = {DOCSTRINGS}: {len(walked):,} docstrings give no {split} example; "
                "raise corpus.max_documents"
            )
    files = {split: (summaries.write(examples[split], work.out, split),) for split in SUMMARY_SPLITS}
    metrics = {f"summaries_{split}": len(examples[split]) for split in SUMMARY_SPLITS}
    metrics["examples_left_out_for_test"] = found - sum(metrics.values())
    return Summaries(**files, hash_split=False), test_documents, metrics


def _refer_summaries(step: Step, run: Run) -> tuple[Summaries, pa.Table, dict[str, Any]]:
    """The same for files from outside. Raises SourceError naming the file, column or split that is missing."""
    source, metrics = storage.redact(run.config.corpus.summaries), {}
    listed = _resolve(summaries_source(run.config.corpus), step.identity["summaries_state"], run, metrics)
    described = refer(_describe(listed, SUMMARY_COLUMNS, run), source)
    for split in SUMMARY_SPLITS:
        _check_columns(described, split, source)
    test_documents = held_out_table(example.document for example in summaries.split_examples(described, "test"))
    held_out, rejected = HeldOut(test_documents), Counter()
    metrics["examples_left_out_for_test"] = 0
    for split in SUMMARY_SPLITS:
        found = kept = 0
        for rows in batched(summaries.split_rows(described, split)):
            rejected.update(row for row in rows if isinstance(row, str))
            examples = [row for row in rows if not isinstance(row, str)]
            found += len(examples)
            kept += len(examples if split == "test" else list(summaries.trainable(examples, held_out)))
        if not found:
            raise SourceError(f"{source}: its {split} split has no row with a document and a summary")
        metrics[f"summaries_{split}"] = kept
        metrics["examples_left_out_for_test"] += found - kept
    metrics["summaries_rejected"] = rejected.total()
    metrics["summaries_rejected_by_reason"] = dict(sorted(rejected.items()))
    return described, test_documents, metrics


def _check_columns(described: Summaries, split: str, source: str) -> None:
    """Raises SourceError if no row of a split has text in one of the columns; splits that share files are one."""
    if described.hash_split and split != "train":
        return
    place = source if described.hash_split else f"{source}, split {split}"
    for column in SUMMARY_COLUMNS:
        corpus.check_usable(getattr(described, split), column, place, SUMMARY_COLUMNS)


def _resolve(source: Source, state: dict[str, Any], run: Run, metrics: dict[str, Any]) -> list[SourceFile]:
    """The files of a source. What else lies there is told, and counted in the metrics. Raises as ``resolve``."""
    files, left_out = resolve(source, state)
    if left_out:
        metrics.setdefault("files_left_out", {})[source.setting] = left_out
        line = f"{source.setting}: read {len(files):,} files, left out {describe_left_out(left_out)}"
        run.console.print(line, highlight=False, markup=False)
    return files


def _describe(listed: list[SourceFile], columns: tuple[str, ...], run: Run) -> list[TextFile]:
    described: dict[int, TextFile] = {}

    def finished(index: int, file: TextFile) -> None:
        described[index] = file
        run.progress.update(len(described) / len(listed), f"{len(described):,} of {len(listed):,} files checked")

    spread(describe_file, ((file, columns) for file in listed), in_flight(None), finished)
    return [described[index] for index in range(len(listed))]


task = stage_task("corpus", build)
