"""Have MKL choose the kernels of its vector functions before two threads ask for one at once.

PyTorch hands cos, exp and the like of contiguous float tensors to MKL, a share to each thread. MKL (2024.2, in
PyTorch's wheels) chooses a function's kernel at its first call; when several threads make that call together, one of
them may get a kernel of low accuracy for its share, that one time (pytorch/pytorch#188792). Here it was half of a RoPE
table, cosines wrong by up to 2e-4, in one process of ten: the same request then drew another picture (docs/log.md).
"""

from __future__ import annotations

from functools import cache

import torch

_FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "exp2", "expm1"),
    *("lgamma", "log", "log10", "log1p", "log2", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)


@cache
def settle_vector_math() -> None:
    """Call every such function once for one element, which one thread does. Changes no result but those bad ones."""
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for function in _FUNCTIONS:
            getattr(torch, function)(half)
