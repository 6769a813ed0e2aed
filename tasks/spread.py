"""One way to spread work over Ray: plain tasks, a bounded number of them in flight, results as they come."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.remote_function import RemoteFunction

RETRIES = 5  # for tasks whose worker was lost; an exception of the task itself is not retried


def in_flight(num_workers: int | None) -> int:
    """Tasks at once: as configured, or one for each CPU of the cluster."""
    return num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))


def spread(
    function: RemoteFunction, arguments: Iterable[tuple], limit: int, finished: Callable[[int, Any], None]
) -> None:
    """Call ``function.remote(*argument)`` for every argument, at most ``limit`` at a time, and
    ``finished(index, result)`` in the order in which they end. ``arguments`` is drawn from only as there is room.
    On any exception what is in flight is cancelled; an exception of a task is raised as it was."""
    todo = enumerate(arguments)
    pending: dict[ray.ObjectRef, int] = {}
    try:
        while True:
            for index, argument in islice(todo, limit - len(pending)):
                pending[function.remote(*argument)] = index
            if not pending:
                return
            ready, _ = ray.wait(list(pending), timeout=0.5)
            for reference in ready:
                result = ray.get(reference)
                finished(pending.pop(reference), result)
    except RayTaskError as error:
        raise error.cause from None
    finally:
        for reference in pending:
            ray.cancel(reference)
