"""What a driver hears of its training. Apart from the training itself, because the processes that hold this need no
torch, and would otherwise load it at every start."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.train.v2._internal.execution.callback import ControllerCallback

from bitlm.errors import BitLMError


@dataclass
class Told:
    """What the monitor has heard: rank 0's starts, its newest figures, the first fault, and the workers' controller."""

    starts: int = 0
    figures: dict[str, Any] | None = None
    validation: float | None = None
    fault: BitLMError | None = None
    controller: ActorHandle | None = None


@ray.remote(num_cpus=0)
class Monitor:
    """Where workers and controller tell of themselves, for the driver to ask."""

    def __init__(self) -> None:
        self._told = Told()

    def controlled_by(self, controller: ActorHandle) -> None:
        self._told.controller = controller

    def started(self) -> None:
        self._told.starts += 1

    def figures(self, line: dict[str, Any]) -> None:
        self._told.validation = line.get("validation_nats_per_token", self._told.validation)
        self._told.figures = line if "loss" in line else self._told.figures

    def failed(self, fault: BitLMError) -> None:
        self._told.fault = self._told.fault or fault

    def told(self) -> Told:
        return self._told


class Introduce(ControllerCallback):
    """Runs in the controller, whose handle Ray Train keeps to itself."""

    def __init__(self, monitor: ActorHandle) -> None:
        self._monitor = monitor

    def after_controller_start(self, train_run_context: Any) -> None:
        self._monitor.controlled_by.remote(ray.get_runtime_context().current_actor)
