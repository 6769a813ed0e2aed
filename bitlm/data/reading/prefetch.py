"""Results made in a thread while earlier ones are used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

_A = TypeVar("_A")
_B = TypeVar("_B")

DEPTH = 2  # results made in advance, at most


@contextmanager
def prefetch(make: Callable[[_A], _B], arguments: Iterable[_A]) -> Iterator[Iterator[_B]]:
    """``make`` of each argument in turn, called in one thread. An exception of it is raised where its result would be
    taken. At the end of the context nothing more is made, and the thread has ended."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        made: deque[Future[_B]] = deque()
        try:
            yield _results(pool, make, iter(arguments), made)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(
    pool: ThreadPoolExecutor, make: Callable[[_A], _B], arguments: Iterator[_A], made: deque[Future[_B]]
) -> Iterator[_B]:
    made.extend(pool.submit(make, argument) for argument in islice(arguments, DEPTH))
    while made:
        result = made.popleft().result()
        made.extend(pool.submit(make, argument) for argument in islice(arguments, 1))
        yield result
