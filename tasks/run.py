"""What every stage shares: look its fingerprint up, reuse or make it, commit it, say so."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.tasks import Task
from rich.console import Console

from bitlm.artifacts.lineage import explain
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Draft, Store
from bitlm.artifacts.work import Work
from bitlm.config import PipelineConfig
from bitlm.errors import ArtifactError, BitLMError
from bitlm.steps import Step
from tasks.progress import Progress
from tasks.session import RaySession

Verification = Literal["full", "size"]


@dataclass(frozen=True)
class Outcome:
    """What a step came to."""

    record: Record
    url: str
    reused: bool
    reasons: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For programs: id, path, whether it was reused, why not, and its metrics."""
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
    """One invocation: its store, configuration and Ray session, and what it has already verified."""

    store: Store
    config: PipelineConfig
    verification: Verification = "full"
    console: Console = field(default_factory=lambda: Console(stderr=True))
    session: RaySession = field(default_factory=RaySession)
    verified: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.progress = Progress("", self.console)

    def ray(self) -> None:
        """Start or join Ray, once."""
        self.session.start()

    def input(self, step: Step, role: str) -> Record:
        """The verified record that fills a role of a step. Raises ArtifactError where it has not been made."""
        made = step.inputs[role]
        record = made if isinstance(made, Record) else self.store.find(made.stage, made.name, made.fingerprint)
        if record is None:
            raise ArtifactError(missing_input(step, role))
        return self.verify(record)

    def verify(self, record: Record) -> Record:
        if record.id not in self.verified:
            self.store.verify(record, contents=self.verification == "full")
            self.verified.add(record.id)
        return record


Build = Callable[[Step, Run, Work], dict[str, Any]]


@contextmanager
def open_run(config: PipelineConfig, root: str, verification: Verification) -> Iterator[Run]:
    """A run whose Ray session ends with the context."""
    run = Run(Store(root), config, verification)
    try:
        yield run
    finally:
        run.session.close()


def missing_input(step: Step, role: str) -> str:
    made = step.inputs[role]
    assert isinstance(made, Step)
    return (
        f"{step.key} needs {made.key}, which has not been made with this configuration: "
        f"run `bitlm run {made.stage}` first, add --upstream, or name one with --input {role}=ID"
    )


def stage_task(
    stage: str, build: Build, then: Callable[[Record, Run], None] | None = None
) -> Task[[Step, Run], Outcome]:
    """The Prefect task of a stage; ``then`` may record something about the finished artifact.

    A stage is idempotent, so Prefect may run it once more after a fault that is not the user's.
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
        if then is not None:
            then(outcome.record, run)
        return outcome

    return run_stage


def run_step(step: Step, run: Run, build: Build) -> Outcome:
    """Reuse the artifact of this fingerprint, or make the next version."""
    found = run.store.find(step.stage, step.name, step.fingerprint)
    if found is not None:
        return _reused(found, run)
    reasons = tuple(explain(run.store.newest(step.stage, step.name), step))
    run.console.print(f"[bold]making[/]  {step.key}  [dim]({'; '.join(reasons)})[/]", highlight=False)
    inputs = {role: run.input(step, role) for role in step.inputs}
    run.progress = Progress(step.key, run.console)
    started = datetime.now(UTC)
    work = run.store.begin(step.stage, step.name, step.fingerprint)
    try:
        found = run.store.find(step.stage, step.name, step.fingerprint)
        if found is not None:  # another process committed it since we looked
            work.remove()
            return _reused(found, run)
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
    run.console.print(
        f"[green]made[/]    {record.id}  [dim]{record.seconds:.1f} s  {headline(record.metrics)}[/]",
        highlight=False,
        soft_wrap=True,
    )
    return _told(Outcome(record, run.store.url(record.id), False, reasons))


def _reused(found: Record, run: Run) -> Outcome:
    run.verify(found)
    run.store.discard(found)
    run.console.print(f"[green]reused[/]  {found.id}", highlight=False)
    return _told(Outcome(found, run.store.url(found.id), True, ()))


def headline(metrics: Mapping[str, Any], most: int = 6) -> str:
    """The first few plain figures of a record, in one line."""
    shown = []
    for key, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        shown.append(
            f"{key} {value:,}"
            if isinstance(value, int)
            else f"{key} {value:.4g}"
            if isinstance(value, float)
            else f"{key} {value}"
        )
    return " · ".join(shown[:most])


def _told(outcome: Outcome) -> Outcome:
    if TaskRunContext.get() is not None:
        record = outcome.record
        lines = [f"**{record.id}** ({'reused' if outcome.reused else 'made'})", "", f"`{outcome.url}`", ""]
        lines += [f"- {reason}" for reason in outcome.reasons]
        lines += [
            "",
            "| input | artifact |",
            "|---|---|",
            *(f"| {role} | {entry.id} |" for role, entry in record.inputs.items()),
        ]
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [
            f"| {key} | {value} |" for key, value in record.metrics.items() if isinstance(value, int | float | str)
        ]
        key = "".join(c if c.isalnum() else "-" for c in f"{record.stage}-{record.name}".lower())
        create_markdown_artifact("\n".join(lines), key=key, description=record.id)
    return outcome


def _worth_retrying(_task: Task[Any, Any], _task_run: Any, state: Any) -> bool:
    return not isinstance(state.result(raise_on_failure=False), BitLMError)
