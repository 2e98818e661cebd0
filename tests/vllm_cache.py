"""A layer's KV cache as vLLM's CPU backend keeps it, written by vLLM's own operator; and moves written as runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panoserve.kernels.kv_layout import attention_isa
from panoserve.kernels.kv_shift import KVMove

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
    fp8 = "fp8" if layer.dtype == torch.uint8 else "auto"
    isa = attention_isa(keys.dtype, block_size, width // 2, fp8)
    key_cache, value_cache = layer.view(num_blocks, heads, 2 * block_size, width // 2).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, slots, isa, kv_cache_dtype=fp8)


def move_of(*runs: tuple[Sequence[int], Sequence[int], int, int]) -> KVMove:
    """From (source slots, destination slots, rows, columns) of each run of slots that share a shift."""
    table = [
        (source, destination, rows, columns)
        for sources, destinations, rows, columns in runs
        for source, destination in zip(sources, destinations, strict=True)
    ]
    source, destination, rows, columns = torch.tensor(table).T.contiguous()
    return KVMove(source, destination, rows.int(), columns.int())
