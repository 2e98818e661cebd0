"""vLLM's RMSNorm with the CPU kernels that vLLM 0.32 compiles but does not dispatch to.

Its own CPU path runs a norm as eight small torch operators, which at the few rows of a decode step cost more than the
arithmetic (figures in docs/log.md). On other devices this is vLLM's layer, unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.layers.layernorm import RMSNorm


class FusedRMSNorm(RMSNorm):
    """RMSNorm; with a residual, adds it first and also returns the sum (both inputs are overwritten)."""

    def forward_cpu(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is not None:
            torch.ops._C.fused_add_rms_norm(x, residual, self.weight.data, self.variance_epsilon)
            return x, residual
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, self.weight.data, self.variance_epsilon)
        return out
