"""A store with made-up artifacts of a whole pipeline, so that the report can be tested without running one."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import made_models
import numpy as np
from made_models import write

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import EvaluateConfig, configure
from bitlm.config.sampler import SAMPLER_KEYS
from bitlm.evaluate import brier, continuations, predictions, rouge
from bitlm.evaluate.results import Subjects, subjects

# The LM head has one; a diffusion head is also scored with the sampler of the article.
ARTICLES = EvaluateConfig().sampler_identity()
SAMPLERS = {
    "diffusion": {"": {**ARTICLES, "num_steps": 4, "stagger": 1.0}, "-article": ARTICLES},
    "lm": {"": {"temperature": 0.0}},
}
SAMPLED = "temperature 1"  # what the tables tell of BrierLM's samples
EXACT = {"validation_kind": "exact"}
CHAIN = {"validation_kind": "chain", "validation_nats_per_slot": [4.4, 5.4, 5.9, 6.7]}
ATTACK = "<script>alert('x')</script> & <img src=http://evil.example/x.png>"


@dataclass
class MadeUp:
    store: Store
    subjects: Subjects


def make(root: Path) -> MadeUp:
    changes = ["model.head.denoiser=matched_filter", "pretrain.diffusion.loss=bce"]
    config, store = configure("tiny-article", changes), Store(str(root))
    corpus = commit(store, "corpus", "docstrings", config.corpus.identity(), {}, {"source.json": b"{}"})
    tokenizer = commit(
        store, "tokenizer", "docstrings", config.tokenizer.identity(), {"corpus": corpus}, {"tokenizer.json": b"{}"}
    )
    tokens = commit(
        store, "tokens", "docstrings", config.tokens.identity(), {"corpus": corpus, "tokenizer": tokenizer}, {"x": b"x"}
    )
    references = [f"Return the value of item {i} as text." for i in range(40)]
    wrote = [f"Return item {i}. Nothing else." for i in range(40)]
    evaluated = config.evaluate.model_dump(mode="json", exclude={"execution", *SAMPLER_KEYS})
    evaluations = [
        commit(
            store,
            "evaluate",
            "docstrings-lead",
            {"system": "lead", **evaluated},
            {"corpus": corpus},
            scored(wrote, references, None),
        )
    ]
    trained = []
    for head, level in (("diffusion", 5.4), ("lm", 3.9)):
        identity = {
            "head": head,
            "model": config.model.model_dump(mode="json", exclude={"scale"}),
            **config.pretrain.identity_for(head),
        }
        pretrain = commit(
            store,
            "pretrain",
            f"tiny-{head}",
            identity,
            {"tokens": tokens, "tokenizer": tokenizer},
            {"metrics.jsonl": curve(800, level, head)},
            trained_for(800, head),
        )
        finetune = commit(
            store,
            "finetune",
            f"tiny-{head}",
            {"head": head, **config.finetune.identity_for(head)},
            {"pretrain": pretrain, "corpus": corpus, "tokenizer": tokenizer},
            {"metrics.jsonl": curve(300, level - 0.5, head)},
            trained_for(300, head),
        )
        for model, training in ((pretrain, "pretrained"), (finetune, "finetuned")):
            for suffix, sampler in SAMPLERS[head].items():
                texts = [ATTACK, "", *(f"Return {training} thing {suffix} {i}." for i in range(2, 40))]
                evaluations.append(
                    commit(
                        store,
                        "evaluate",
                        f"tiny-{head}-{training}{suffix}",
                        {"system": "model", "head": head, **evaluated, **sampler},
                        {"model": model, "corpus": corpus, "tokenizer": tokenizer},
                        sampled(scored(texts, references, 30), training, f"{head}{suffix}"),
                    )
                )
        trained += [pretrain, finetune]
    return MadeUp(store, subjects(store, evaluations, trained))


def trained_for(steps: int, head: str) -> dict[str, Any]:
    """Metrics of a training, as far as a report reads them."""
    parameters = {"backbone": 2_000_000, "head": 0 if head == "lm" else 1_500_000}
    parameters["total"] = sum(parameters.values())
    return {
        "steps": steps,
        "tokens": 2048 * steps,
        "train_seconds": steps / 4 if head == "lm" else steps / 2,
        "tokens_per_second": 9000.0,
        "parameters": parameters,
    }


def commit(
    store: Store,
    stage: str,
    name: str,
    identity: dict[str, Any],
    inputs: dict[str, Record],
    files: dict[str, bytes],
    metrics: dict[str, Any] | None = None,
) -> Record:
    """On the same day always, which the report shows."""
    started = datetime(2026, 1, 2, tzinfo=UTC)
    return made_models.commit(store, stage, name, identity, inputs, lambda out: write(out, files), metrics, started)


def scored(texts: list[str], references: list[str], steps: int | None) -> dict[str, bytes]:
    rows = [
        {
            "row": i,
            "id": f"id-{i}",
            "prompt_tokens": None if steps is None else 50,
            "text": text,
            "reference": reference,
            "steps": steps or 0,
            "saved": None if steps is None else 0,
            "new_tokens": None if steps is None else 12,
            "blocks": None if steps is None else 3,
        }
        for i, (text, reference) in enumerate(zip(texts, references, strict=True))
    ]
    table = predictions.pa.Table.from_pylist(rows, schema=predictions.SCHEMA)
    table = predictions.with_scores(table, rouge.score_pairs(texts, references))
    return {
        "predictions.parquet": predictions.to_parquet(table),
        "scores.json": json.dumps(rouge.score(texts, references, samples=50)).encode(),
    }


def sampled(files: dict[str, bytes], training: str, system: str) -> dict[str, bytes]:
    """With BrierLM of samples that are right in some places; the true blocks belong to the training."""
    rng, of_system = (np.random.default_rng(len(name)) for name in (training, system))
    truth = rng.integers(0, 3, size=(60, 4))
    first, second = (np.where(of_system.random((60, 4)) < 0.8, truth, 9) for _ in range(2))
    prompts = [[0] * (4 + i % 5) for i in range(60)]
    positions = continuations.Positions(prompts, truth, np.arange(60) // 2)
    blocks = continuations.to_table(positions, first.tolist(), second.tolist())
    scores = json.loads(files["scores.json"])
    scores["brier"] = brier.score(first, second, truth, positions.sequences, samples=30, seed=1)
    scores["brier"] |= {
        "text": {"pretrained": "held-out text"}.get(training, "reference summaries"),
        "sampler": SAMPLED,
    }
    return files | {
        "scores.json": json.dumps(scores).encode(),
        "continuations.parquet": predictions.to_parquet(blocks),
    }


def curve(steps: int, level: float, head: str, noise: Callable[[float], float] = math.sin) -> bytes:
    lines = []
    for step in range(1, steps + 1):
        loss = level + 3 * math.exp(-step / 90) + 0.1 * noise(step * 1.7)
        lines.append({"step": step, "loss": loss, "learning_rate": 1e-3, "tokens_per_second": 9000.0})
        if step % 100 == 0:
            lines.append(
                {
                    "step": step,
                    "validation_nats_per_token": loss + 0.2,
                    "validation_standard_error": 0.04,
                    "bits_per_byte": loss / 3,
                    **(EXACT if head == "lm" else {**CHAIN, "validation_bound_nats_per_token": loss + 0.7}),
                }
            )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
