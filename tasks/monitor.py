"""What a driver learns about its training while it runs.

A module of its own, because the process that holds it needs neither torch nor Ray Train and would otherwise load them
at every start.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from bitlm.errors import BitLMError


@dataclass
class TrainingStatus:
    """How often rank 0 has started, its newest line of training metrics and newest validation figure, the first
    error, and the controller of the workers."""

    starts: int = 0
    metrics: dict[str, Any] | None = None
    validation: float | None = None
    error: BitLMError | None = None
    controller: ActorHandle | None = None


@ray.remote(num_cpus=0)
class Monitor:
    """Holds the status: workers and controller report to it, the driver asks for it."""

    def __init__(self) -> None:
        self._status = TrainingStatus()

    def set_controller(self, controller: ActorHandle) -> None:
        self._status.controller = controller

    def count_start(self) -> None:
        self._status.starts += 1

    def report(self, line: dict[str, Any]) -> None:
        """A line of metrics, of a training step or of a validation."""
        self._status.validation = line.get("validation_nats_per_token", self._status.validation)
        if "loss" in line:
            self._status.metrics = line

    def report_error(self, error: BitLMError) -> None:
        self._status.error = self._status.error or error

    def status(self) -> TrainingStatus:
        return self._status
