"""What is kept of a module goes when its parameters change, in place, by a move, or with the module."""

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from bitlm.generation.kept import Kept


def counted() -> tuple[list[object], Callable[[], object]]:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    return made, make


def step(module: nn.Module) -> None:
    with torch.no_grad():
        module.weight += 1


def load(module: nn.Module) -> None:
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})


def change_buffer(module: nn.Module) -> None:
    module.running_mean.zero_()


def cast(module: nn.Module) -> None:
    module.to(torch.float64)


def replace_parameter(module: nn.Module) -> None:
    module.weight = nn.Parameter(module.weight.detach().clone())


@pytest.mark.parametrize("change", [step, load, change_buffer, cast, replace_parameter])
def test_it_is_made_again_when_the_module_changed(change: Callable[[nn.Module], None]) -> None:
    kept, module, (made, make) = Kept(), nn.BatchNorm1d(3), counted()
    first = kept.get(module, "a", make)
    assert kept.get(module, "a", make) is first
    assert len(made) == 1
    change(module)
    assert kept.get(module, "a", make) is made[1]
    assert kept.get(module, "a", make) is made[1]
    assert len(made) == 2


def test_modules_and_keys_are_told_apart() -> None:
    kept, modules, (made, make) = Kept(), [nn.Linear(2, 2), nn.Linear(2, 2)], counted()
    found = [kept.get(module, key, make) for module in modules for key in "ab"]
    assert found == made
    assert len(set(map(id, found))) == 4


def test_the_oldest_leaves() -> None:
    kept, module, (made, make) = Kept(limit=2), nn.Linear(2, 2), counted()
    for key in "abcb":
        kept.get(module, key, make)
    assert len(made) == 3
    kept.get(module, "a", make)
    assert len(made) == 4


def test_nothing_outlives_its_module() -> None:
    kept, module = Kept(), nn.Linear(2, 2)
    gone = weakref.ref(kept.get(module, "a", partial(nn.Linear, 1, 1)))
    assert gone() is not None
    del module
    gc.collect()
    assert gone() is None
