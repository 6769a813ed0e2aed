"""What the flows share: which steps a run means, and one Prefect task for each of them, in order."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from bitlm.artifacts.store import Store
from bitlm.config import PipelineConfig
from bitlm.errors import ArtifactError, ConfigError
from bitlm.steps import ROLES, STAGES, Step, find_artifact, init_records, select, steps
from tasks.run import Verification, missing_input, open_run

StageName = Literal[*STAGES]
Inputs = dict[str, str] | None
Summaries = list[dict[str, Any]]


@dataclass(frozen=True)
class Selection:
    """The part of the pipeline that a user asks for."""

    stages: tuple[str, ...]
    """All stages if empty."""
    inputs: Mapping[str, str]
    """Role → id of the artifact that is to fill it."""
    upstream: bool
    """Whether the steps that the named stages need are meant too."""


def execute(config: PipelineConfig, root: str, selection: Selection, verification: Verification) -> Summaries:
    """Run the selected steps and return their summaries. Raises as ``check``, before any work."""
    selected = check(config, root, selection)
    with open_run(config, root, verification) as run:
        outcomes = [import_module(STAGES[step.stage].task).task(step, run) for step in selected]
    return [outcome.summary() for outcome in outcomes]


def selected_steps(config: PipelineConfig, root: str, selection: Selection) -> list[Step]:
    """Raises ConfigError for an unknown role, SourceError for a missing source, ArtifactError for a missing id."""
    store = Store(root)
    for role in selection.inputs:
        if role not in ROLES:
            raise ConfigError(f"--input {role}: no stage takes such an input; inputs: {', '.join(ROLES)}")
    replacements = {role: store.load(artifact_id) for role, artifact_id in selection.inputs.items()}
    all_steps = steps(config, init_records(config, store.load) | replacements)
    return select(all_steps, list(selection.stages), replacements, selection.upstream)


def check(config: PipelineConfig, root: str, selection: Selection) -> list[Step]:
    """``selected_steps``. Also raises ArtifactError if a step needs an artifact that neither exists nor is selected."""
    selected = selected_steps(config, root, selection)
    store = Store(root)
    selected_keys = {step.key for step in selected}
    for step in selected:
        for role, parent in step.inputs.items():
            made_now = isinstance(parent, Step) and parent.key in selected_keys
            if not made_now and find_artifact(parent, store) is None:
                raise ArtifactError(missing_input(step, role))
    return selected
