from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from bitlm.errors import SourceError
from tasks.spread import spread

pytestmark = pytest.mark.usefixtures("ray_session")


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
    def work(x: int) -> None:
        if x == 1:
            raise SourceError("the first one")
        (tmp_path / str(x)).touch()

    for _ in range(30):  # a task that is about to end while another fails must not bring the driver down
        with pytest.raises(SourceError, match=r"^the first one$") as caught:
            spread(ray.remote(work), ((x,) for x in range(50)), 4, lambda *_: None)
        assert type(caught.value) is SourceError
    assert len(list(tmp_path.iterdir())) < 49


def test_a_fault_in_the_driver_ends_the_work() -> None:
    def refuse(_: int, result: Any) -> None:
        raise ValueError(result)

    with pytest.raises(ValueError, match="7"):
        spread(ray.remote(lambda x: x + 7), [(0,), (0,)], 2, refuse)
