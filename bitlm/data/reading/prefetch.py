"""Results computed in a thread while earlier ones are used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

_A = TypeVar("_A")
_B = TypeVar("_B")

DEPTH = 2  # results computed in advance, at most


@contextmanager
def prefetch(function: Callable[[_A], _B], arguments: Iterable[_A]) -> Iterator[Iterator[_B]]:
    """``function`` of each argument in turn, called in one thread.

    An exception is raised where the result would be taken. At the end of the context no call is left and the thread has
    ended.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        pending: deque[Future[_B]] = deque()
        try:
            yield _results(pool, function, iter(arguments), pending)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(
    pool: ThreadPoolExecutor, function: Callable[[_A], _B], arguments: Iterator[_A], pending: deque[Future[_B]]
) -> Iterator[_B]:
    pending.extend(pool.submit(function, argument) for argument in islice(arguments, DEPTH))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(function, argument) for argument in islice(arguments, 1))
        yield result
