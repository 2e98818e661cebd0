"""A layer's KV cache as vLLM's CPU backend keeps it, written by vLLM's own operator."""

from __future__ import annotations

import torch
from torch import Tensor

from panoserve.kernels.kv_layout import attention_isa

HEADS = 3


def empty_layer(num_blocks: int, block_size: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """[num_blocks, heads, block_size, 2 * head_dim], the shape that `register_kv_caches` hands out."""
    return torch.zeros(num_blocks, HEADS, block_size, 2 * head_dim, dtype=dtype)


def write_by_vllm(layer: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store keys and values [n, heads, head_dim] at `slots`, as CPUAttentionBackendImpl.do_kv_cache_update does."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    num_blocks, heads, block_size, width = layer.shape
    isa = attention_isa(layer.dtype, block_size, width // 2)
    key_cache, value_cache = layer.view(num_blocks, heads, 2 * block_size, width // 2).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, slots, isa)
