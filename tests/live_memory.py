"""Count the bytes that tensors hold while some code runs, exactly and on any machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """While entered, `peak` is the most bytes held at once by storages that operations have made since."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [value.untyped_storage()._cdata for value in args if isinstance(value, Tensor)]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple) else (out,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in inputs:
                    self._grow(storage._cdata, storage.nbytes())
                    weakref.finalize(storage, self._shrink, storage._cdata, storage.nbytes())
        return out

    def _grow(self, key: int, size: int) -> None:
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _shrink(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes held at once by tensors made in `run`."""
    with LiveMemory() as memory:
        run()
    return memory.peak
