"""The CPU kernel behind models/layers.py computes what the reference computes, in every dtype."""

from __future__ import annotations

import pytest
import torch

from panoserve.models.reference import RMSNorm
from panoserve.serve.settings import set_environment

# Relative to values of about 1: a few units in the last place.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(scope="module", autouse=True)
def vllm_kernels() -> None:
    set_environment()
    from vllm.platforms import current_platform

    current_platform.import_kernels()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "dim"), [(1, 64), (10, 768), (7, 200)])  # 200: not a multiple of a vector register
def test_rms_norm(dtype: torch.dtype, rows: int, dim: int) -> None:
    from vllm.config import VllmConfig, set_current_vllm_config

    from panoserve.models.layers import FusedRMSNorm

    x, residual = torch.randn(2, rows, dim).to(dtype)
    reference = RMSNorm(dim, 1e-5).to(dtype)
    with torch.no_grad(), set_current_vllm_config(VllmConfig()):
        reference.weight.copy_(torch.rand(dim) + 0.5)
        fused = FusedRMSNorm(dim, 1e-5, dtype=dtype)
        fused.weight.copy_(reference.weight)
        close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
        torch.testing.assert_close(fused.forward_cpu(x), reference(x), **close)
        total = x + residual
        normed, kept = fused.forward_cpu(x.clone(), residual.clone())
        torch.testing.assert_close(kept, total, **close)
        torch.testing.assert_close(normed, reference(total), **close)
