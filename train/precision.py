"""In which precision training computes."""

from __future__ import annotations

import torch


def training_dtype() -> torch.dtype:
    """bfloat16 where the processor has instructions for it; elsewhere that is slower than float32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def mixed() -> torch.autocast:
    """Autocast to bfloat16, if that is the training_dtype."""
    return torch.autocast("cpu", torch.bfloat16, enabled=training_dtype() == torch.bfloat16)
