"""A second device for tests, on any machine.

Everything is computed on the CPU, but in ``second_device()`` a tensor that is made on ``cuda`` or moved there is marked
with all that is computed from it; its ``device`` says so. As on a GPU, an operation on tensors of both devices raises
RuntimeError, unless those of the CPU are single numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitlm.model import backbone, codebook
from bitlm.model.prefix import PrefixPass

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
LIFT = torch.ops.aten.lift_fresh.default  # the last part of torch.tensor(…), which has no other
COPY = torch.ops.aten.copy_.default


class Marks:
    """The storages of the second device. They are kept alive, so that no address comes twice."""

    def __init__(self) -> None:
        self._marked: dict[int, Any] = {}

    def device(self, tensor: Tensor) -> torch.device:
        return CUDA if tensor.untyped_storage()._cdata in self._marked else CPU

    def common_device(self, tensors: list[Tensor]) -> torch.device | None:
        """None without tensors. The second device goes before the CPU, whose tensors are then single numbers."""
        return max(map(self.device, tensors), key=str, default=None)

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        storage = tensor.untyped_storage()
        if device == CUDA:
            self._marked[storage._cdata] = storage
        else:
            self._marked.pop(storage._cdata, None)
        return tensor


class Operations(TorchDispatchMode):
    """Refuses operations on both devices, and marks results."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks
        self.fresh = CPU  # where a tensor appears that is made of none

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [] if func is LIFT else tensors_in(args, kwargs)
        if func is not COPY and len({self.marks.device(tensor) for tensor in given if tensor.ndim}) > 1:
            raise RuntimeError(f"{func} of tensors on cuda and on the CPU")
        result = func(*args, **(kwargs or {}))
        device = self.marks.common_device(given[:1] if func is COPY else given) or self.fresh
        for tensor in tensors_in(result):
            self.marks.put(tensor, device)
        return result


class Calls(TorchFunctionMode):
    """What Python asks of torch: where a tensor is, to make one on a device, to move one."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations, self.marks = operations, operations.marks

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.device.__get__, Tensor.is_cuda.__get__):
            device = self.marks.device(args[0])
            return device if func == Tensor.device.__get__ else device == CUDA
        if func is torch._C._nn._parse_to:  # of Module.to, which moves tensor by tensor
            return func(*args, **kwargs)
        asked = next(filter(None, map(_device, (*args, *kwargs.values()))), None)
        args = tuple(CPU if _device(value) else value for value in args)
        kwargs = {name: CPU if _device(value) else value for name, value in kwargs.items()}
        if func is Tensor.cpu or (func is Tensor.to and asked):
            return self._moved(func(*args, **kwargs), asked or CPU)
        if func is Tensor.numpy and self.marks.device(args[0]) == CUDA:
            raise TypeError("a tensor on cuda is no numpy array")
        before = self.operations.fresh
        self.operations.fresh = asked or self.marks.common_device(tensors_in(args, kwargs)) or CPU
        try:
            return func(*args, **kwargs)
        finally:
            self.operations.fresh = before

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        return tensor if self.marks.device(tensor) == device else self.marks.put(tensor.clone(), device)


def tensors_in(*values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _device(value: Any) -> torch.device | None:
    if isinstance(value, str) and value.partition(":")[0] in ("cuda", "cpu"):
        value = torch.device(value)
    if not isinstance(value, torch.device):
        return None
    return CUDA if value.type == "cuda" else value


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The second device. What the model keeps for each device is forgotten at both ends."""
    _forget()
    operations = Operations(Marks())
    memory = mock.patch.object(torch.cuda, "get_device_properties", return_value=SimpleNamespace(total_memory=2**34))
    with operations, Calls(operations), memory:
        yield CUDA
    _forget()


def _forget() -> None:
    backbone._cached_mask.cache_clear()
    codebook._all_codes.cache_clear()
    PrefixPass.of.cache_clear()
