"""In which precision training computes."""

from __future__ import annotations

import torch


def mixed() -> torch.autocast:
    """Autocast to bfloat16, where the processor has instructions for it; elsewhere that is slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())
