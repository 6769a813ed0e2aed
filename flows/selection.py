"""Which steps of the pipeline a run or a plan is about."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitlm.artifacts.record import Record
from bitlm.artifacts.roots import check_writable
from bitlm.artifacts.store import Store
from bitlm.config import PipelineConfig
from bitlm.errors import ArtifactError, ConfigError
from bitlm.steps import ROLES, Step, find_artifact, init_records, missing_input, steps


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
    """``selected_steps``. Also raises ArtifactError if a step needs an artifact that neither exists nor is selected,
    and for a root that cannot be written to."""
    selected = selected_steps(config, root, selection)
    store = Store(root)
    selected_keys = {step.key for step in selected}
    for step in selected:
        for role, parent in step.inputs.items():
            made_now = isinstance(parent, Step) and parent.key in selected_keys
            if not made_now and find_artifact(parent, store) is None:
                raise ArtifactError(missing_input(step, role))
    check_writable(root)
    return selected


def select(all_steps: list[Step], stages: list[str], replacements: Mapping[str, Record], upstream: bool) -> list[Step]:
    """The steps of the named stages (of all stages if none is named); with ``upstream``, also all that they need.

    If there are replacements, only steps that use one of them are selected. Raises ConfigError if no step does.
    """
    selected = [step for step in all_steps if not stages or step.stage in stages]
    if replacements:
        ids = {record.id for record in replacements.values()}
        selected = [step for step in selected if any(_id(parent) in ids for parent in step.inputs.values())]
        if not selected:
            where, roles = ", ".join(stages) or "the pipeline", ", ".join(replacements)
            raise ConfigError(f"--input: no step of {where} takes {', '.join(sorted(ids))} as {roles}")
    if upstream:
        needed: set[str] = set()
        for step in selected:
            _add_with_ancestors(step, needed)
        selected = [step for step in all_steps if step.key in needed]
    return selected


def _id(parent: Step | Record) -> str | None:
    return parent.id if isinstance(parent, Record) else None


def _add_with_ancestors(step: Step, keys: set[str]) -> None:
    keys.add(step.key)
    for parent in step.inputs.values():
        if isinstance(parent, Step):
            _add_with_ancestors(parent, keys)
