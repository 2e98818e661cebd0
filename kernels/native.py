"""The compiled kernels of kernels/native/, where they were built (setup.py: only if there is a C compiler)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from types import ModuleType


class Level(IntEnum):
    """Instructions that matrix products, attention and convolutions are compiled for (native/native.h)."""

    NONE = 0
    AVX2 = 1  # x86-64-v3
    AVX512 = 2  # x86-64-v4
    AVX512_BF16 = 3  # and products of pairs of bfloat16
    AMX = 4  # and tiles


@cache
def native() -> ModuleType | None:
    """The compiled module, set to the best level of this machine, or None."""
    import torch  # (loads the OpenMP library that the module shares with it)

    try:
        from panoserve.kernels import _native  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return None
    level = _native.vector_level()
    # `_init_amx` asks Linux for the permission to use the tiles, once a process.
    if _native.AMX_BUILT and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
        level = Level.AMX
    _native.use_level(level)
    return _native


def level() -> Level:
    """What runs on this machine."""
    compiled = native()
    return Level.NONE if compiled is None else Level(compiled.level_in_use())


@contextmanager
def lowered(wanted: Level) -> Iterator[None]:
    """Run at another level than the best, in tests and measurements. Raises ValueError where the machine lacks it."""
    best, compiled = level(), native()
    if wanted > best:
        raise ValueError(f"this machine runs {best.name}, not {wanted.name}")
    if compiled is None:
        yield
        return
    compiled.use_level(wanted)
    try:
        yield
    finally:
        compiled.use_level(best)
