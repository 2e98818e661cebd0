"""The compiled kernels of kernels/native/, where they were built (setup.py: only if there is a C compiler)."""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def native() -> ModuleType | None:
    """The compiled module, or None."""
    import torch  # noqa: F401  (loads the OpenMP library that the module shares with it)

    try:
        from panoserve.kernels import _native  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return None
    return _native
