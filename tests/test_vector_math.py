"""MKL's kernels are chosen before two threads can ask for one. The race itself cannot be provoked reliably."""

from __future__ import annotations

import pytest
import torch

from panoserve import plugin
from panoserve.kernels import vector_math
from panoserve.models.reference import rope_table


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that torch.cos is called with from here on, in a process that seems fresh."""
    sizes: list[int] = []
    cos = torch.cos
    monkeypatch.setattr(torch, "cos", lambda x: sizes.append(x.numel()) or cos(x))
    vector_math.settle_vector_math.cache_clear()
    return sizes


def test_every_process_that_registers_the_model_settles_them(calls: list[int]) -> None:
    plugin.register()
    assert calls == [1, 1]  # float32, float64
    plugin.register()
    assert calls == [1, 1]


def test_the_rope_table_settles_them_first(calls: list[int]) -> None:
    table = rope_table(24, 64)
    assert calls == [1, 1]
    angles = torch.outer(torch.arange(24.0).double(), 10_000.0 ** -(torch.arange(0, 32, 2).double() / 32))
    torch.testing.assert_close(table[:24, 16:, 0], angles.cos().float(), atol=2e-6, rtol=0)  # columns 0..23 of row 0
    assert table.dtype == torch.float32
