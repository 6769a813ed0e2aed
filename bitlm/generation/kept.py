"""What was computed from the parameters of a module, kept for as long as they are the same."""

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


class Kept:
    """A dictionary for each module, thrown away when one of its parameters or buffers was moved or changed, or the
    module is gone. Torch counts changes in place, but not those through ``.data`` or under ``torch.inference_mode``."""

    def __init__(self, limit: int | None = None) -> None:
        """At most ``limit`` entries for each module, the oldest of which leave."""
        self._limit = limit
        self._found: WeakKeyDictionary[nn.Module, tuple[Hashable, dict[Hashable, Any]]] = WeakKeyDictionary()

    def get(self, module: nn.Module, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept under ``key``; made first if nothing is."""
        tensors = (*module.parameters(), *module.buffers())
        state = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
        made_for, entries = self._found.get(module, (None, {}))
        if made_for != state:
            entries = {}
            self._found[module] = state, entries
        if key not in entries:
            if self._limit is not None and len(entries) >= self._limit:
                del entries[next(iter(entries))]
            entries[key] = make()
        return entries[key]
