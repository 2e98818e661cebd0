"""The element-wise parts of a transformer block, each as one pass where torch needs many small operators.

At the few rows of a decode step such operators cost more than their arithmetic (figures in docs/log.md). In bfloat16 on
a CPU the passes are compiled (kernels/native/elementwise.c); otherwise the readable twins below run, which are their
specification.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from panoserve.kernels.native import native


def turn_heads(x: Tensor, rope: Tensor) -> Tensor:
    """models.reference.rotate for padded heads: x [N, S, heads, hd] by complex64 rope [N, rotated/2].

    Dimensions behind the rotated ones are padding and stay as they are.
    """
    rotated = 2 * rope.shape[-1]
    pairs = torch.view_as_complex(x[..., :rotated].float().unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(pairs * rope[:, None, None]).flatten(-2).to(x.dtype)
    return turned if rotated == x.shape[-1] else torch.cat([turned, x[..., rotated:]], dim=-1)


def rope_split_reference(qkv: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [N, S * heads * hd], of qkv [N, S, 3 * heads, hd]; the first two turned."""
    heads = qkv.shape[2] // 3
    turned = turn_heads(qkv[:, :, : 2 * heads], rope)
    return turned[:, :, :heads].flatten(1), turned[:, :, heads:].flatten(1), qkv[:, :, 2 * heads :].flatten(1)


def rope_split(qkv: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`rope_split_reference`, in one pass where it is compiled."""
    compiled = native()
    if compiled is None or qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu":
        return rope_split_reference(qkv, rope)
    assert qkv.is_contiguous() and rope.is_contiguous() and rope.dtype == torch.complex64
    tokens, streams, triple, head_dim = qkv.shape
    q, k, v = (qkv.new_empty(tokens, streams * triple // 3 * head_dim) for _ in range(3))
    addresses = (t.data_ptr() for t in (qkv, rope, q, k, v))
    compiled.rope_split(*addresses, tokens, streams, triple // 3, head_dim, 2 * rope.shape[-1])
    return q, k, v


def silu_and_mul_reference(x: Tensor) -> Tensor:
    """silu of the first half of x's columns, times the second half: [R, 2 F] -> [R, F]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_and_mul(x: Tensor) -> Tensor:
    """`silu_and_mul_reference`, in one pass where it is compiled."""
    compiled = native()
    if compiled is None or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return silu_and_mul_reference(x)
    assert x.is_contiguous()
    rows, columns = x.shape[0], x.shape[1] // 2
    y = x.new_empty(rows, columns)
    compiled.silu_and_mul(x.data_ptr(), y.data_ptr(), rows, columns)
    return y


def rms_norm_reference(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Rows [R, D] over the root of their mean square, in float32, then times `weight` [D] (facts.md 1.1)."""
    values = x.float()
    return (values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype) * weight


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`rms_norm_reference`, in one pass where it is compiled."""
    compiled = native()
    if compiled is None or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return rms_norm_reference(x, weight, epsilon)
    assert x.is_contiguous() and weight.dtype == x.dtype
    y = torch.empty_like(x)
    compiled.rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // len(weight), len(weight), epsilon)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`rms_norm_reference` of x + residual, and that sum; both inputs are overwritten where it is compiled."""
    compiled = native()
    if compiled is None or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        total = x + residual
        return rms_norm_reference(total, weight, epsilon), total
    assert x.is_contiguous() and residual.is_contiguous() and weight.dtype == x.dtype == residual.dtype
    compiled.add_rms_norm(
        x.data_ptr(), residual.data_ptr(), weight.data_ptr(), x.numel() // len(weight), len(weight), epsilon
    )
    return x, residual
