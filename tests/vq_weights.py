"""Deterministic tokenizer weights for tests."""

from __future__ import annotations

import math
from zlib import crc32

import torch

from panoserve.vq.config import VQConfig
from panoserve.vq.model import VQModel

TINY_VQ = VQConfig(
    channels=8,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    z_channels=8,
    codebook_size=32,
    code_dim=4,
    norm_groups=4,
)


def filled_tensor(key: str, shape: torch.Size) -> torch.Tensor:
    """The fill rule of the golden vectors (facts.md 9)."""
    if key.endswith(("codebook_used", "cluster_size_ema")):
        return torch.zeros(shape)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(key.encode())))
    if key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm_out.weight")):
        return 1 + 0.1 * values
    if len(shape) == 4:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.1 * values if len(shape) == 1 else values


def filled_vq(config: VQConfig) -> VQModel:
    """A tokenizer with the weights of the golden vectors, in evaluation mode, without gradients."""
    with torch.device("meta"):
        model = VQModel(config)
    state = {key: filled_tensor(key, value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
