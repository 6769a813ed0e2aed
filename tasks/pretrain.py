"""The pretrain stage: a model of one head from token shards."""

import json
import os
from functools import partial
from typing import Any

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.artifacts.work import Work
from bitlm.config import PretrainConfig
from bitlm.config.stages import init_kind
from bitlm.data.shards.units import TOKENS_FILE
from bitlm.errors import ConfigError
from bitlm.steps import Step
from bitlm_tasks.run import Run, stage_task
from bitlm_tasks.setups import PretrainInputs, StartWeights, pretrain_setup
from bitlm_tasks.training import check_tokenizer, fit


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    """Raises ConfigError if the tokens are too few for one batch or for a validation."""
    tokens, tokenizer = run.input(step, "tokens"), run.input(step, "tokenizer")
    check_tokenizer(tokens, tokenizer)
    config = run.config.pretrain
    _check_enough(run.store, tokens, config)
    inputs = PretrainInputs(
        run.store.root,
        tokens,
        tokenizer,
        head=step.identity["head"],
        model=run.config.model,
        config=config,
        start=_start(step, run, tokenizer),
        first_position=step.identity.get("first_position", 0),
    )
    return fit(partial(pretrain_setup, inputs), config, step, run, work)


def _start(step: Step, run: Run, tokenizer: Record) -> StartWeights | None:
    if "init" in step.inputs:
        pretrained = run.input(step, "init")
        check_tokenizer(pretrained, tokenizer)
        return StartWeights(pretrained.id, pretrained, None)
    if "init" not in step.identity:
        return None
    source = run.config.pretrain.init_from
    if init_kind(source) == "folder":
        source = os.path.abspath(source)  # workers have another working directory
    return StartWeights(source, None, step.identity["init"])


def _check_enough(store: Store, tokens: Record, config: PretrainConfig) -> None:
    splits = json.loads(store.read_bytes(tokens, TOKENS_FILE))["splits"]
    for split, least, why in (
        ("train", config.batch_size, f"one batch of pretrain.batch_size = {config.batch_size}"),
        ("validation", 1, "one validation"),
    ):
        count = sum(shard["tokens"] // config.sequence_length for shard in splits[split]["shards"])
        if count < least:
            raise ConfigError(
                f"{tokens.id} holds {count} {split} sequences of pretrain.sequence_length = {config.sequence_length} "
                f"tokens, too few for {why}: use more text or shorter sequences"
            )


task = stage_task("pretrain", build)
