"""Which steps of the pipeline a run or a plan is about."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitlm.artifacts.store import Store
from bitlm.config import PipelineConfig
from bitlm.errors import ArtifactError, ConfigError
from bitlm.steps import ROLES, Step, find_artifact, init_records, missing_input, select, steps


@dataclass(frozen=True)
class Selection:
    """The part of the pipeline that a user asks for."""

    stages: tuple[str, ...]
    """All stages if empty."""
    inputs: Mapping[str, str]
    """Role → id of the artifact that is to fill it."""
    upstream: bool
    """Whether the steps that the named stages need are meant too."""


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
