"""What the flows share: which steps are meant, and one Prefect task for each, in order."""

from collections.abc import Sequence
from typing import Any, Literal

from bitlm.artifacts.store import Store
from bitlm.config import PipelineConfig
from bitlm.errors import ArtifactError, ConfigError
from bitlm.steps import Step, init_records, select, steps
from tasks import corpus, evaluate, finetune, pretrain, report, tokenizer, tokens
from tasks.run import Verification, missing_input, open_run

Stage = Literal["corpus", "tokenizer", "tokens", "pretrain", "finetune", "evaluate", "report"]
Inputs = dict[str, str] | None
Summaries = list[dict[str, Any]]

TASKS = {
    "corpus": corpus.task,
    "tokenizer": tokenizer.task,
    "tokens": tokens.task,
    "pretrain": pretrain.task,
    "finetune": finetune.task,
    "evaluate": evaluate.task,
    "report": report.task,
}
ROLES = ("corpus", "tokenizer", "tokens", "init", "pretrain", "model")


def execute(
    stages: Sequence[str], config: PipelineConfig, root: str, inputs: Inputs, upstream: bool, verification: Verification
) -> Summaries:
    """Run the steps of the named stages (all where none is named) and return their summaries.

    Raises ConfigError, SourceError or ArtifactError before any work where a source or an input is missing.
    """
    chosen = check(stages, config, root, inputs, upstream)
    with open_run(config, root, verification) as run:
        outcomes = [TASKS[step.stage](step, run) for step in chosen]
    return [outcome.summary() for outcome in outcomes]


def chosen_steps(
    stages: Sequence[str], config: PipelineConfig, root: str, inputs: Inputs, upstream: bool
) -> list[Step]:
    """The steps that are meant; ``inputs`` maps a role to the id of the artifact that is to fill it."""
    store = Store(root)
    for role in inputs or {}:
        if role not in ROLES:
            raise ConfigError(f"--input {role}: no stage takes such an input; inputs: {', '.join(ROLES)}")
    given = {role: store.load(artifact_id) for role, artifact_id in (inputs or {}).items()}
    return select(steps(config, init_records(config, store.load) | given), list(stages), given, upstream)


def check(stages: Sequence[str], config: PipelineConfig, root: str, inputs: Inputs, upstream: bool) -> list[Step]:
    """``chosen_steps``, with every input that none of them makes found in the store."""
    chosen = chosen_steps(stages, config, root, inputs, upstream)
    store = Store(root)
    coming = {step.key for step in chosen}
    for step in chosen:
        for role, made in step.inputs.items():
            if (
                isinstance(made, Step)
                and made.key not in coming
                and store.find(made.stage, made.name, made.fingerprint) is None
            ):
                raise ArtifactError(missing_input(step, role))
    return chosen
