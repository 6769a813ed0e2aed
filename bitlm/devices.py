"""Devices that models run on: the CPU, and GPUs that torch reaches through CUDA (or ROCm under that name)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bitlm.errors import BitLMError, ConfigError
from bitlm.text import first_line


def find_device(name: str | None = None) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N``, as torch names them; by default a GPU where there is one.

    Raises ConfigError, naming the devices of this machine, for any other name and for a GPU that cannot be used.
    """
    available = torch.cuda.is_available()
    if name is None:
        name = "cuda" if available else "cpu"
    gpus = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "cpu":
        fault = None
    elif name in gpus:
        fault = cuda_fault(torch.device(name))
    elif name.startswith("cuda"):
        fault = cuda_fault(torch.device("cuda")) or "there is no such GPU"
    else:
        fault = "models do not run on it"
    if fault is not None:
        raise ConfigError(
            f"device {name!r}: {fault}; choose one of: {', '.join(['cpu', *gpus] if available else ['cpu'])}"
        )
    return torch.device(name)


def cuda_fault(device: torch.device) -> str | None:
    """Why this process cannot compute on a GPU, in one line; None if it can."""
    version = f"torch {torch.__version__}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not torch.backends.cuda.is_built():
        return f"{version} is built without CUDA"
    if not available:
        said = f" ({first_line(caught[-1].message)})" if caught else ""
        return f"{version} finds no GPU with a working driver{said}"
    try:
        (torch.ones(1, device=device) + 1).item()  # a driver or a build may be too old for the GPU that is there
    except RuntimeError as error:
        return f"{version} cannot compute on it ({first_line(error)})"
    return None


@contextmanager
def gpu_memory(remedy: str) -> Iterator[None]:
    """Raises BitLMError with ``remedy`` where a GPU runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BitLMError(f"the GPU has too little memory ({first_line(error)}): {remedy}") from error
