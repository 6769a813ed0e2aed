import contextlib
import threading
import time

import pytest

from bitlm.data.reading.prefetch import DEPTH, prefetch


def test_results_come_in_order_and_a_bounded_number_ahead() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    with prefetch(make, range(20)) as upcoming:
        for number in range(20):
            assert next(upcoming) == number * number
            assert len(made) <= number + 1 + DEPTH
        with pytest.raises(StopIteration):
            next(upcoming)
    assert made == list(range(20))


def test_the_next_is_made_while_one_is_used() -> None:
    made = threading.Event()
    with prefetch(lambda number: made.set() if number == 1 else None, range(3)) as upcoming:
        next(upcoming)
        assert made.wait(20)


def test_an_exception_is_raised_where_its_result_would_be() -> None:
    with prefetch(lambda number: 6 // (2 - number), range(5)) as upcoming:
        assert [next(upcoming), next(upcoming)] == [3, 6]
        with pytest.raises(ZeroDivisionError):
            next(upcoming)


def test_nothing_runs_after_the_end() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        time.sleep(0.01)
        made.append(number)
        return number

    before = threading.active_count()
    with contextlib.suppress(KeyError), prefetch(make, range(1000)) as upcoming:
        raise KeyError(next(upcoming))
    assert threading.active_count() == before
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 1 + DEPTH
