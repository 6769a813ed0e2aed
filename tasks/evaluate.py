"""The evaluate stage: texts from one system (the lead baseline, or a model on Ray Data actors), then their ROUGE; and
for a model two samples of each of many held-out blocks, then BrierLM.

Each finished batch is a file in the scratch folder, so that after a kill the next run continues with the batches that
are missing.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from bitlm import errors, storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.work import Work
from bitlm.config import EvaluateConfig
from bitlm.config.sampler import SAMPLER_KEYS
from bitlm.data.shards.tokenizer import TextTokenizer, load_tokenizer
from bitlm.data.summaries.examples import Example, read_examples
from bitlm.data.summaries.prompts import encode_prompts
from bitlm.errors import ArtifactError, SourceError
from bitlm.evaluate import brier, rouge
from bitlm.evaluate.continuations import to_table
from bitlm.evaluate.lead import lead
from bitlm.evaluate.measures import MEASURES
from bitlm.evaluate.predictions import (
    PARTS,
    SCHEMA,
    TEXTS,
    Prediction,
    batches,
    costs,
    read_parts,
    to_parquet,
    with_scores,
)
from bitlm.steps import Step
from bitlm_tasks.brier import find_positions, score_blocks
from bitlm_tasks.prediction_worker import PredictionWorker
from bitlm_tasks.resources import Demand, Node, check_room, living_nodes
from bitlm_tasks.run import Run, stage_task


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    config = _settings(step, run)
    corpus = run.input(step, "corpus")
    examples = list(read_examples(run.store, corpus, config.split, config.examples))
    if not examples:
        raise SourceError(f"{corpus.id} has no example in its {config.split} split: there is nothing to score")
    brier_scores: dict[str, Any] = {}
    if step.identity["system"] == "lead":
        rows = [_lead(row, example, config.lead_sentences) for row, example in enumerate(examples)]
        predictions = pa.Table.from_pylist(rows, schema=SCHEMA)
    else:
        predictions, brier_scores = _generate(step, run, config, work, examples)
    run.progress.update(1.0, f"scoring {len(examples):,} texts")
    texts, references = predictions["text"].to_pylist(), predictions["reference"].to_pylist()
    values = rouge.score_pairs(texts, references, config.tokenizer)
    scored = with_scores(predictions, values)
    storage.write_atomic(storage.join(work.out, "predictions.parquet"), to_parquet(scored))
    scores = rouge.summarize(values, texts, references, config.bootstrap_samples, config.seed, config.tokenizer)
    if (note := rouge.unread_note(scores)) is not None:
        run.console.print(f"warning: {step.key}: {note}", soft_wrap=True)
    if brier_scores:
        scores["brier"] = brier_scores
    storage.write_atomic(storage.join(work.out, "scores.json"), json.dumps(scores, indent=1).encode())
    figures = {measure: scores[measure]["f1"] for measure in MEASURES}
    figures |= {name: brier_scores[name]["value"] for name in reversed(brier.NAMES) if brier_scores}
    unread = {f"unread_{side}": count for side, count in scores["unread"].items()}
    return {**figures, "examples": len(examples), "empty": scores["empty"], **costs(predictions), **unread}


def _lead(row: int, example: Example, sentences: int) -> Prediction:
    text = lead(example.document, sentences)
    values = row, example.id, None, text, example.summary, 0, None, None, None
    return dict(zip(SCHEMA.names, values, strict=True))


def _settings(step: Step, run: Run) -> EvaluateConfig:
    """Those of the run, with the sampler of the step."""
    if "sampler" not in step.identity:
        return run.config.evaluate
    others = run.config.evaluate.model_dump(exclude=set(SAMPLER_KEYS))
    sampler = {key: step.identity[key] for key in SAMPLER_KEYS & step.identity.keys()}
    return EvaluateConfig.model_validate(others | sampler)


def _generate(
    step: Step, run: Run, settings: EvaluateConfig, work: Work, examples: Sequence[Example]
) -> tuple[pa.Table, dict[str, Any]]:
    """Predictions of a model for all examples, in their order, and ``score_blocks``, empty if it is not asked for."""
    model = run.input(step, "model")
    tokenizer = _tokenizer(run, model, run.input(step, "tokenizer"))
    prompts = {"texts": encode_prompts(tokenizer, [example.document for example in examples], run.config.prompt)}
    positions = None
    if settings.brier_blocks:
        positions = find_positions(step, run, settings, tokenizer, examples, prompts["texts"])
        prompts["blocks"] = positions.prompts
    written = _write(run, settings, model, prompts, work.scratch)
    own = {"id": [example.id for example in examples], "reference": [example.summary for example in examples]}
    texts = {name: written["texts"][name] for name in TEXTS.names}
    predictions = pa.table({name: (texts | own)[name] for name in SCHEMA.names}, schema=SCHEMA)
    if positions is None:
        return predictions, {}
    first, second = (written["blocks"][name].to_pylist() for name in ("first", "second"))
    blocks = to_table(positions, first, second)
    storage.write_atomic(storage.join(work.out, "continuations.parquet"), to_parquet(blocks))
    return predictions, score_blocks(model, settings, blocks)


def _write(
    run: Run, settings: EvaluateConfig, model: Record, prompts: Mapping[str, Sequence[list[int]]], scratch: str
) -> dict[str, pa.Table]:
    """What the model writes behind the prompts of each kind, in their order: ``texts`` and ``blocks``."""
    sizes = {"texts": settings.execution.batch_size, "blocks": max(1, settings.execution.batch_size // 2)}  # 2 samples
    folders = {kind: storage.join(scratch, kind) for kind in prompts}
    items, done, total = [], 0, sum(map(len, prompts.values()))
    for kind, each in prompts.items():
        finished = set(read_parts(folders[kind], PARTS[kind])["row"].to_pylist())
        done += len(finished)
        todo = batches([len(prompt) for prompt in each], finished, sizes[kind])
        items += [{"kind": kind, "rows": rows, "prompts": [each[row] for row in rows]} for rows in todo]
    if items:
        run.ray()
        check_room(Demand.of_evaluation(settings))
        run.progress.update(done / total, f"starting up to {settings.execution.num_actors} actor(s)")
        worker = run.store.root, model.id, scratch, run.config.prompt.max_summary_tokens, settings
        for count in _counts(worker, settings, items):
            done += count
            run.progress.update(done / total, f"{done:,} of {total:,} prompts")
    written = {kind: read_parts(folder, PARTS[kind]) for kind, folder in folders.items()}
    for kind, table in written.items():
        assert table["row"].to_pylist() == list(range(len(prompts[kind]))), f"{folders[kind]}: not every row once"
    return written


def _tokenizer(run: Run, model: Record, tokenizer: Record) -> TextTokenizer:
    """Raises ArtifactError if it is not the tokenizer that the model was trained with."""
    loaded = load_tokenizer(run.store, tokenizer)
    if json.loads(run.store.read_bytes(model, "model/tokenizer_info.json"))["sha256"] != loaded.info.sha256:
        raise ArtifactError(f"{model.id} was not trained with {tokenizer.id}: give the tokenizer it was made from")
    return loaded


def _counts(worker: tuple[Any, ...], settings: EvaluateConfig, items: list[dict[str, Any]]) -> Iterator[int]:
    """Predict all items with a pool of actors, each made with the arguments ``worker``. Yields the number of rows of
    each batch when it is finished.

    A lost actor is replaced and its batch repeated. A BitLMError in an actor is raised here with its own type.
    """
    _quiet()
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        PredictionWorker,
        batch_size=1,  # one item; Ray Data takes no None with a GPU
        batch_format="pyarrow",
        fn_constructor_args=worker,
        compute=ActorPoolStrategy(min_size=1, max_size=settings.execution.num_actors),
        num_cpus=actor_cpus(settings, living_nodes()),
        num_gpus=1 if settings.execution.use_gpu else None,
    )
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in block.to_pylist():
            if row["error"]:
                raise getattr(errors, row["error_type"])(row["error"])
            yield row["count"]


def actor_cpus(settings: EvaluateConfig, nodes: list[Node]) -> float:
    """CPUs of an actor: at most what one of the nodes has on which it can run. A pool that takes all CPUs never
    finishes, so one stays free, or half of a single one."""
    able = [node for node in nodes if node.get("GPU") or not settings.execution.use_gpu]
    largest = max((node.get("CPU", 0.0) for node in able), default=settings.execution.cpus_per_actor)
    total = sum(node.get("CPU", 0.0) for node in nodes)
    return min(settings.execution.cpus_per_actor, largest, max(total - 1, total / 2))


def _quiet() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


task = stage_task("evaluate", build)
