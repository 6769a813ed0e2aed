import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from bitlm.errors import SourceError
from bitlm_tasks.spread import spread

pytestmark = pytest.mark.usefixtures("ray_session")


def numbers(n: int, drawn: list[int]) -> Iterator[tuple[int]]:
    for x in range(n):
        drawn.append(x)
        yield (x,)


def test_every_argument_once_and_never_more_than_the_limit_drawn() -> None:
    square = ray.remote(lambda x: x * x)
    found: dict[int, int] = {}
    drawn = 0

    def arguments() -> Iterator[tuple[int]]:
        nonlocal drawn
        for x in range(20):
            drawn += 1
            assert drawn - len(found) <= 3
            yield (x,)

    spread(square, arguments(), 3, found.__setitem__)
    assert found == {x: x * x for x in range(20)}


def test_arguments_may_end_on_what_was_found() -> None:
    found: list[int] = []
    spread(ray.remote(lambda x: x), ((x,) for x in range(100) if len(found) < 5), 2, lambda _, x: found.append(x))
    assert 5 <= len(found) <= 7


def test_a_fault_is_raised_as_it_was_after_what_runs_has_ended(tmp_path: Path) -> None:
    failed = tmp_path / "failed"

    def work(x: int) -> None:
        if x == 1:
            failed.touch()
            raise SourceError("the first one")
        while x > 1 and not failed.exists():  # still running when the fault is on its way
            time.sleep(0.001)
        (tmp_path / str(x)).touch()

    for _ in range(30):  # a task that is about to end while another fails must not bring the driver down
        drawn: list[int] = []
        with pytest.raises(SourceError, match=r"^the first one$") as caught:
            spread(ray.remote(work), numbers(50, drawn), 4, lambda *_: None)
        assert type(caught.value) is SourceError
        assert {path.name for path in tmp_path.iterdir()} == {"failed"} | {str(x) for x in drawn if x != 1}
        for path in tmp_path.iterdir():
            path.unlink()


def test_nothing_is_started_after_a_fault() -> None:
    def work(x: int) -> None:
        if x == 1:
            raise SourceError("the first one")

    drawn: list[int] = []
    with pytest.raises(SourceError):
        spread(ray.remote(work), numbers(50, drawn), 1, lambda *_: None)
    assert drawn == [0, 1]


def test_a_fault_in_the_driver_ends_the_work() -> None:
    def refuse(_: int, result: Any) -> None:
        raise ValueError(result)

    with pytest.raises(ValueError, match="7"):
        spread(ray.remote(lambda x: x + 7), [(0,), (0,)], 2, refuse)
