"""The top-k mask of sampling: vLLM's CPU path sorts out the k largest logits where only the k-th one is needed.

With GPT-B's 16,384 codes and k = 2,000 its topk took 3.6 ms of a step of four panoramas (docs/log.md).
`mask_below_top_k_reference` is the specification, and what vLLM computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panoserve.kernels.native import native


def available(device: torch.device) -> bool:
    """Whether the compiled mask can be used for logits on `device`."""
    return device.type == "cpu" and native() is not None


def mask_below_top_k_reference(logits: Tensor, k: Tensor) -> Tensor:
    """Logits float32 [R, V] with everything below each row's k-th largest at minus infinity; k int64 [R], 0 keeps all.

    Equal values are all kept, so a row may keep more than k.
    """
    masked = logits.clone()
    for row, keep in zip(masked, k.tolist(), strict=True):
        if 0 < keep < len(row):
            row[row < row.topk(keep).values[-1]] = -torch.inf
    return masked


def mask_below_top_k(logits: Tensor, k: Tensor) -> None:
    """`mask_below_top_k_reference` in place; only where `available` allows it."""
    compiled = native()
    assert compiled is not None
    assert logits.dtype == torch.float32 and logits.is_contiguous() and k.dtype == torch.int64 and len(k) == len(logits)
    scratch = torch.empty(logits.shape, dtype=torch.int32)
    compiled.mask_below_top_k(logits.data_ptr(), k.data_ptr(), scratch.data_ptr(), *logits.shape)
