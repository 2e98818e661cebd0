"""The top-k and top-p masks of sampling: vLLM's CPU path sorts every row where only one value of it is needed.

With GPT-B's 16,384 codes and k = 2,000 its topk took 3.6 ms of a step of four panoramas; for the embedded model's top-p
of 1,024 codes its sort took 1.2 ms of a step with 33 lanes (docs/log.md). The `_reference` functions are the
specification, and what vLLM computes, up to rounding and to which of several equal logits it keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panoserve.kernels.native import native


def available(device: torch.device) -> bool:
    """Whether the compiled masks can be used for logits on `device`."""
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


def mask_below_top_p_reference(logits: Tensor, p: Tensor) -> Tensor:
    """Logits float32 [R, V] with the least likely codes of each row at minus infinity, as many as together have at most
    1 - p of its probability; p float64 [R], above 0, 1 keeps all.

    Equal values are kept or masked alike: kept, if one of them must be.
    """
    masked = logits.clone()
    for row, keep in zip(masked, p.tolist(), strict=True):
        if keep < 1:
            ascending, order = row.double().sort()
            below = row.double().softmax(dim=0)[order].cumsum(dim=0)
            dropped = min(int((below <= 1 - keep).sum()), len(row) - 1)
            row[row < ascending[dropped]] = -torch.inf
    return masked


def mask_below_top_p(logits: Tensor, p: Tensor) -> None:
    """`mask_below_top_p_reference` in place, with probabilities in float32; only where `available` allows it."""
    compiled = native()
    assert compiled is not None
    assert logits.dtype == torch.float32 and logits.is_contiguous()
    assert p.dtype == torch.float64 and len(p) == len(logits)
    keys, weights = torch.empty(logits.shape, dtype=torch.int32), torch.empty_like(logits)
    compiled.mask_below_top_p(logits.data_ptr(), p.data_ptr(), keys.data_ptr(), weights.data_ptr(), *logits.shape)
