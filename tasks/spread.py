"""Ray tasks over many arguments: a bounded number in flight, results in the order in which they end."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.remote_function import RemoteFunction

DRAIN_SECONDS = 60.0  # for tasks that still run when one has failed
RETRIES = 5  # of a task whose worker was lost; an exception of the task itself is not retried


def in_flight(num_workers: int | None) -> int:
    """How many tasks run at once: as configured, or one for each CPU of the cluster."""
    return num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))


def spread(
    function: RemoteFunction,
    arguments: Iterable[tuple],
    limit: int,
    finished: Callable[[int, Any], None],
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """Call ``function.remote(*argument)`` for every argument, at most ``limit`` at a time, and
    ``finished(index, result)`` in the order in which they end; ``waiting()`` before each wait of half a second at most.
    An argument is taken only when its task can start.

    After an exception no more tasks are started, those that run are awaited, and the exception is raised; that of a
    task is raised as the task raised it. After an interrupt nothing is awaited: the end of the Ray session ends the
    tasks. They are not cancelled, because ``ray.cancel`` (2.60) aborts the driver if the reply of the task is on its
    way.
    """
    todo = enumerate(arguments)
    pending: dict[ray.ObjectRef, int] = {}
    try:
        while True:
            for index, argument in islice(todo, limit - len(pending)):
                pending[function.remote(*argument)] = index
            if not pending:
                return
            waiting()
            ready, _ = ray.wait(list(pending), timeout=0.5)
            for reference in ready:
                result = ray.get(reference)
                finished(pending.pop(reference), result)
    except Exception as error:
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=DRAIN_SECONDS, fetch_local=False)
        raise (error.cause if isinstance(error, RayTaskError) else error) from None
