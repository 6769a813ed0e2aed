"""How the monitor of a training gets to know its controller.

A module of its own, because the controller needs no torch and would otherwise load it at every start.
"""

from typing import Any

import ray
from ray.actor import ActorHandle
from ray.train.v2._internal.execution.callback import ControllerCallback


class ControllerRegistration(ControllerCallback):
    """Runs in the controller, and tells the monitor its handle, which Ray Train does not expose."""

    def __init__(self, monitor: ActorHandle) -> None:
        self._monitor = monitor

    def after_controller_start(self, train_run_context: Any) -> None:
        self._monitor.set_controller.remote(ray.get_runtime_context().current_actor)
