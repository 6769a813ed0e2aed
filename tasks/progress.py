"""Progress of a stage: one line on the terminal and, in a Prefect task run, one progress artifact."""

import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from rich.console import Console

TERMINAL_SECONDS = 0.5
PLAIN_SECONDS = 10.0


class Progress:
    """``update`` may be called often: it prints at most twice a second, and in a plain log every ten seconds."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._interval = TERMINAL_SECONDS if console.is_terminal else PLAIN_SECONDS
        self._shown = time.monotonic() - self._interval
        self._recorded = self._shown
        self._artifact: UUID | None = None

    def update(self, fraction: float, text: str) -> None:
        """``fraction``: the part of the stage that is done, in [0, 1]; ``text``: figures to show beside it."""
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self._show(fraction, text)
        if now - self._recorded >= TERMINAL_SECONDS and TaskRunContext.get() is not None:
            self._recorded = now
            self._record(fraction, text)

    def _show(self, fraction: float, text: str) -> None:
        line = f"  {self._title}  {fraction:4.0%}  {text}"
        if self._console.is_terminal:
            self._console.print(line[: self._console.width - 1].ljust(self._console.width - 1), end="\r")
        else:
            self._console.print(line, soft_wrap=True)

    def _record(self, fraction: float, text: str) -> None:
        if self._artifact is None:
            self._artifact = create_progress_artifact(progress=100 * fraction, description=text)
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=100 * fraction, description=text)
