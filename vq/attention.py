"""Attention over all positions of a canvas in memory linear in their number.

The published tokenizers attend with one head over every latent cell: 10,240 cells for a 512 x 5120 picture, whose
score matrix alone would be 0.42 GB (facts.md 7.8). SDPA's fused CPU kernel never builds it. Where SDPA would (its
plain "math" fallback, e.g. on GPUs whose fused kernels refuse 512-wide heads), xformers takes over if it is there, and
otherwise the queries go in chunks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 1 << 24  # float32 scores of one chunk of queries, should SDPA fall back to building them: 64 MiB


@cache
def _xformers_attention() -> Any | None:
    """xformers' memory-efficient attention, or None where it is not installed or does not load."""
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError):
        return None
    return memory_efficient_attention


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v for q, k, v of shape [B, N, C]; differentiable; never holds [N, N] scores."""
    if q.is_cuda and (fused := _xformers_attention()) is not None:
        return fused(q[:, :, None], k[:, :, None], v[:, :, None])[:, :, 0]  # [B, N, heads, C]
    chunk = max(1, SCORES_AT_ONCE // (k.shape[0] * k.shape[1]))
    k, v = k[:, None], v[:, None]  # [B, heads, N, C]
    parts = [F.scaled_dot_product_attention(part[:, None], k, v)[:, 0] for part in q.split(chunk, dim=1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
