"""The few collectives that training needs. Where torch.distributed is not started they are plain calls."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from bitlm.errors import BitLMError

T = TypeVar("T")


def alone() -> bool:
    return not dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place."""
    if not alone():
        dist.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """The value of every rank, in order of rank, on every rank."""
    if alone():
        return [value]
    values: list[T | None] = [None] * world()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def agree(action: Callable[[], T]) -> list[T]:
    """Run ``action`` on every rank and gather the results. Where it fails on one rank, all raise, so that none waits
    for a rank that has stopped: a BitLMError as it is, any other fault on its own rank with its traceback."""
    result: T | None = None
    fault: Exception | None = None
    try:
        result = action()
    except Exception as error:
        fault = error
    told = None if fault is None or isinstance(fault, BitLMError) else RuntimeError(f"rank {rank()}: {fault!r}")
    outcomes = gather((result, told or fault))
    for failed in [fault, *(error for _, error in outcomes)]:
        if failed is not None:
            raise failed
    return [value for value, _ in outcomes]  # type: ignore[misc]


def first(action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0 only; its result, or its fault, on all ranks."""
    return agree(lambda: action() if rank() == 0 else None)[0]  # type: ignore[return-value]
