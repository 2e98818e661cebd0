"""Group normalisation and swish, which stand before every convolution of a VQ decoder (facts.md 2.1), as one pass.

As two operators they take a fifth to a quarter of a decode, and a new tensor each (figures in docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from panoserve.kernels.native import native

MAX_CHANNELS, MAX_GROUPS = 1024, 64  # GROUP_NORM_CHANNELS and _GROUPS in native/native.h


def group_norm_silu_reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    """silu(group_norm(x)) of x [B, C, H, W] with `weight` and `bias` [C]: the specification."""
    return F.silu(F.group_norm(x, groups, weight, bias, epsilon))


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, *, spent: bool = False
) -> Tensor:
    """`group_norm_silu_reference`; compiled, and rounded once instead of twice, for one picture in bfloat16 or float32
    on a CPU whose memory format is channels_last, where no gradient is wanted.

    spent: nobody reads x afterwards, so that the result may take its place.
    """
    compiled = native()
    if (
        compiled is None
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or x.dtype not in (torch.bfloat16, torch.float32)
        or not x.dtype == weight.dtype == bias.dtype
        or len(x) != 1
        or not x.is_contiguous(memory_format=torch.channels_last)
        or x.shape[1] > MAX_CHANNELS
        or groups > MAX_GROUPS
    ):
        return group_norm_silu_reference(x, weight, bias, groups, epsilon)
    y = x if spent else torch.empty_like(x)
    _, channels, height, width = x.shape
    weight, bias = weight.float(), bias.float()
    pointers = (tensor.data_ptr() for tensor in (x, weight, bias, y))
    compiled.group_norm_silu(*pointers, x.dtype == torch.float32, height * width, channels, groups, epsilon)
    return y
