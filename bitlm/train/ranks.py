"""The process group of a training, and the few collectives that training needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from bitlm.errors import BitLMError

T = TypeVar("T")


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The process group that is already there, or one of this process alone until the end of the context.

    So one rank goes through the same code as many, and its numbers are the same.
    """
    if dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank()


def world() -> int:
    return dist.get_world_size()


def sum_(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place."""
    dist.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """The value of every rank, in order of rank, on every rank."""
    values: list[T | None] = [None] * world()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def agree(action: Callable[[], T]) -> list[T]:
    """Run ``action`` on every rank and gather the results.

    If it fails on one rank, all ranks raise, so that none waits for a rank that has stopped: a BitLMError is raised
    everywhere, any other exception on its own rank with its traceback and as a RuntimeError on the others.
    """
    result: T | None = None
    own: Exception | None = None
    try:
        result = action()
    except Exception as error:
        own = error
    shared = own if own is None or isinstance(own, BitLMError) else RuntimeError(f"rank {rank()}: {own!r}")
    outcomes = gather((result, shared))
    for error in [own, *(error for _, error in outcomes)]:
        if error is not None:
            raise error
    return [value for value, _ in outcomes]  # type: ignore[misc]


def first(action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0 only; its result, or its exception, on all ranks."""
    return agree(lambda: action() if rank() == 0 else None)[0]  # type: ignore[return-value]
