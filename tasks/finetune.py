"""The finetune stage: a pretrained model learns to summarize."""

from functools import partial
from typing import Any

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.artifacts.work import Work
from bitlm.config import FinetuneConfig
from bitlm.data.summaries.examples import read_trainable
from bitlm.errors import ConfigError
from bitlm.steps import Step
from bitlm_tasks.run import Run, stage_task
from bitlm_tasks.setups import FinetuneInputs, finetune_setup
from bitlm_tasks.training import check_tokenizer, fit


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    """Raises ConfigError if the examples are too few for one batch or for a validation."""
    pretrained, corpus, tokenizer = (run.input(step, role) for role in ("pretrain", "corpus", "tokenizer"))
    check_tokenizer(pretrained, tokenizer)
    config = run.config.finetune
    _check_enough(run.store, corpus, config)
    inputs = FinetuneInputs(run.store.root, pretrained, corpus, tokenizer, run.config.prompt, config)
    return fit(partial(finetune_setup, inputs), config, step, run, work)


def _check_enough(store: Store, corpus: Record, config: FinetuneConfig) -> None:
    for split, least, why in (
        ("train", config.batch_size, f"one batch of finetune.batch_size = {config.batch_size}"),
        ("validation", 1, "one validation"),
    ):
        count = sum(1 for _ in read_trainable(store, corpus, split, limit=least))
        if count < least:
            left_out = corpus.metrics.get("examples_left_out_for_test")
            told = f" ({left_out} of train and validation hold a test document)" if left_out else ""
            raise ConfigError(f"{corpus.id} holds {count} {split} summaries{told}, too few for {why}: use more text")


task = stage_task("finetune", build)
