"""The tokenizer stage: train byte-level BPE on the corpus, or take a ready tokenizer over."""

import time
from typing import Any

import ray

from bitlm import storage
from bitlm.artifacts.work import Work
from bitlm.data.shards import tokenizer, training
from bitlm.data.sources.state import read_tokenizer
from bitlm.steps import Step
from bitlm_tasks.run import Run, stage_task
from bitlm_tasks.spread import RETRIES, spread

train = ray.remote(max_retries=RETRIES)(training.train)


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    """Write ``tokenizer.json`` and ``tokenizer_info.json``."""
    config = run.config.tokenizer
    metrics: dict[str, Any] = {}
    if config.source == "train":
        data, metrics = _train(step, run)
    else:
        data = read_tokenizer(config)
    info = tokenizer.describe(data, config)
    storage.write_atomic(storage.join(work.out, tokenizer.TOKENIZER_FILE), data)
    storage.write_atomic(storage.join(work.out, tokenizer.INFO_FILE), info.model_dump_json(indent=1).encode())
    return {"vocab_size": info.vocab_size, "num_bits": info.num_bits, **metrics}


def _train(step: Step, run: Run) -> tuple[bytes, dict[str, Any]]:
    """In a Ray task, although there is only one: no signal reaches Python while the library learns merges."""
    corpus, config = run.input(step, "corpus"), run.config.tokenizer
    run.ray()
    began = time.monotonic()
    trained = []

    def waiting() -> None:
        seconds = time.monotonic() - began
        run.progress.update(0.0, f"learning {config.vocab_size:,} tokens from the text, {seconds:.0f} s")

    spread(train, [(run.store.root, corpus, config)], 1, lambda _, result: trained.append(result), waiting)
    return trained[0]


task = stage_task("tokenizer", build)
