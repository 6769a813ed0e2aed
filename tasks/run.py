"""What all stages share: look up the fingerprint of a step, reuse its artifact or make and commit it, and report it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.tasks import Task
from rich.console import Console
from rich.text import Text

from bitlm.artifacts.lineage import explain
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Draft, Store
from bitlm.artifacts.work import Work
from bitlm.config import PipelineConfig
from bitlm.errors import ArtifactError, BitLMError
from bitlm.steps import Step, find_artifact, missing_input
from bitlm.text import markdown, markdown_code, one_line
from bitlm_tasks.console import console
from bitlm_tasks.progress import Progress
from bitlm_tasks.session import RaySession

Verification = Literal["full", "size"]


@dataclass(frozen=True)
class Outcome:
    """The artifact of a step that has run."""

    record: Record
    url: str
    reused: bool
    reasons: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "id": self.record.id,
            "path": self.url,
            "reused": self.reused,
            "reasons": list(self.reasons),
            "fingerprint": self.record.fingerprint,
            "seconds": self.record.seconds,
            "metrics": self.record.metrics,
        }


@dataclass
class Run:
    """One run of the pipeline or of some stages: what its steps share."""

    store: Store
    config: PipelineConfig
    verification: Verification = "full"
    console: Console = field(default_factory=lambda: console(stderr=True))
    session: RaySession = field(default_factory=RaySession)
    verified: set[str] = field(default_factory=set)
    """Ids of the artifacts whose files were checked in this run already."""

    def __post_init__(self) -> None:
        self.progress = Progress("", self.console)

    def ray(self) -> None:
        """Start or join Ray, once."""
        self.session.start()

    def input(self, step: Step, role: str) -> Record:
        """The verified record of one input of a step. Raises ArtifactError if it has not been made or is damaged."""
        record = find_artifact(step.inputs[role], self.store)
        if record is None:
            raise ArtifactError(missing_input(step, role))
        return self.verify(record)

    def verify(self, record: Record) -> Record:
        if record.id not in self.verified:
            self.store.verify(record, contents=self.verification == "full")
            self.verified.add(record.id)
        return record


Build = Callable[[Step, Run, Work], dict[str, Any]]
"""Writes the files of a step's artifact to ``work.out`` and returns its metrics."""


@contextmanager
def open_run(config: PipelineConfig, root: str, verification: Verification) -> Iterator[Run]:
    """A run whose Ray session ends with the context."""
    run = Run(Store(root), config, verification)
    try:
        yield run
    finally:
        run.session.close()


def stage_task(
    stage: str, build: Build, after: Callable[[Record, Run], None] | None = None
) -> Task[[Step, Run], Outcome]:
    """The Prefect task of a stage. ``after`` is called with the artifact, new or reused, and may record more about it.

    A stage is idempotent, so Prefect repeats it once after a fault that is not the user's.
    """

    @task(
        name=stage,
        task_run_name="{step.key}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=1,
        retry_delay_seconds=2,
        retry_condition_fn=_worth_retrying,
    )
    def run_stage(step: Step, run: Run) -> Outcome:
        outcome = run_step(step, run, build)
        if after is not None:
            after(outcome.record, run)
        return outcome

    return run_stage


def run_step(step: Step, run: Run, build: Build) -> Outcome:
    """Reuse the artifact of this fingerprint, or make the next version."""
    existing = find_artifact(step, run.store)
    if existing is not None:
        return _reuse(existing, run)
    reasons = tuple(explain(run.store.newest(step.stage, step.name), step))
    run.console.print(Text.assemble(("making", "bold"), f"  {step.key}  ", (f"({'; '.join(reasons)})", "dim")))
    inputs = {role: run.input(step, role) for role in step.inputs}
    run.progress = Progress(step.key, run.console)
    started = datetime.now(UTC)
    work = run.store.begin(step.stage, step.name, step.fingerprint)
    try:
        existing = find_artifact(step, run.store)
        if existing is not None:  # another process committed it in the meantime
            work.remove()
            return _reuse(existing, run)
        metrics = build(step, run, work)
        draft = Draft(
            stage=step.stage,
            name=step.name,
            fingerprint=step.fingerprint,
            format=step.format,
            identity=step.identity,
            execution=step.execution,
            inputs=inputs,
            metrics=metrics,
            started=started,
        )
        record = run.store.commit(work, draft)
    finally:
        work.release()
    run.verified.add(record.id)
    figures = f"{record.seconds:.1f} s  {headline(record.metrics)}"
    run.console.print(
        Text.assemble(("made", "green"), f"    {record.id}  ", (figures, "dim")),
        soft_wrap=True,
    )
    outcome = Outcome(record, run.store.url(record.id), False, reasons)
    _record_in_prefect(outcome)
    return outcome


def _reuse(record: Record, run: Run) -> Outcome:
    run.verify(record)
    run.store.discard(record)
    run.console.print(Text.assemble(("reused", "green"), f"  {record.id}"))
    outcome = Outcome(record, run.store.url(record.id), True, ())
    _record_in_prefect(outcome)
    return outcome


def headline(metrics: Mapping[str, Any], most: int = 6) -> str:
    """The first few numbers and texts among the metrics, in one line."""
    plain = [(key, value) for key, value in metrics.items() if _is_plain(value) and not isinstance(value, bool)]
    return " · ".join(f"{key} {_short(value)}" for key, value in plain[:most])


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return one_line(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _record_in_prefect(outcome: Outcome) -> None:
    """Add a Markdown artifact to the task run, if this is one."""
    if TaskRunContext.get() is None:
        return
    record = outcome.record
    state = "reused" if outcome.reused else "made"
    inputs = {role: entry.id for role, entry in record.inputs.items()}
    metrics = {key: value for key, value in record.metrics.items() if _is_plain(value)}
    lines = [f"**{markdown(record.id)}** ({state})", "", markdown_code(outcome.url), ""]
    lines += [f"- {markdown(reason)}" for reason in outcome.reasons]
    for head, rows in (("| input | artifact |", inputs), ("| metric | value |", metrics)):
        lines += ["", head, "|---|---|"]
        lines += [f"| {markdown(key)} | {markdown(str(value))} |" for key, value in rows.items()]
    key = "".join(c if c.isalnum() else "-" for c in f"{record.stage}-{record.name}".lower())
    create_markdown_artifact("\n".join(lines), key=key, description=markdown(record.id))


def _worth_retrying(_task: Task[Any, Any], _task_run: Any, state: Any) -> bool:
    """Neither after a user's mistake or a fault of the machine, nor if Prefect itself does not answer: its client has
    repeated its requests already."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, BitLMError | httpx.TransportError | PrefectHTTPStatusError)
