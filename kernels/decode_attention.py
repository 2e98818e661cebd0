"""Attention of a decode step over vLLM's paged KV cache on a CPU: what most of a step of several panoramas is spent on.

A new token of every lane reads all keys and values of its lane once. vLLM's operator reads them at about half of the
memory bandwidth (figures in docs/log.md); native/decode_attention.c, decode_attention_vectors.h and
decode_attention_fp8.c, one for each of vLLM's layouts, fetch every line one block ahead. A token's result does not
depend on the other lanes of the step, which it does in vLLM's, where steps with a prefix to compute go.

`decode_attention_reference` and `KVLayout.write` are the specification.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panoserve.errors import EnvironmentProblem
from panoserve.kernels.kv_layout import KVLayout, cpu_layout, numbers
from panoserve.kernels.native import Level, level, native

GROUP = 32  # head_dim and block_size must be multiples of it
# Layouts that a kernel reads: their numbers in native/native.h, and the level of instructions that it takes.
LAYOUTS = {"amx": (0, Level.AMX), "vec": (1, Level.AVX2), "vec fp8": (2, Level.AVX512)}
SUFFIXES = {torch.bfloat16: "", torch.uint8: " fp8"}  # of a cache's dtype


def readable_layout(kv_cache: Tensor, isa: str, dtype: torch.dtype) -> str | None:
    """The name of the cache's layout if a kernel can read it on this machine, else None.

    isa: what vLLM's attention uses. dtype: of the queries, new keys and new values.
    """
    block_size, head_dim = kv_cache.shape[2], kv_cache.shape[3] // 2
    if (
        dtype != torch.bfloat16
        or kv_cache.dtype not in SUFFIXES
        or head_dim % GROUP
        or block_size % GROUP
        or level() == Level.NONE
    ):
        return None
    try:
        name = cpu_layout(kv_cache.dtype, block_size, head_dim, isa).name + SUFFIXES[kv_cache.dtype]
    except EnvironmentProblem:  # vLLM can read it, whatever it is
        return None
    return name if name in LAYOUTS and level() >= LAYOUTS[name][1] else None


def decode_attention_reference(
    query: Tensor, kv_cache: Tensor, layout: KVLayout, starts: Tensor, lengths: Tensor, tables: Tensor, scale: float
) -> Tensor:
    """Causal attention of every lane's newest tokens over its slots, computed in float32, in query's dtype.

    query [N, heads, head_dim]: lane i's tokens are rows starts[i] : starts[i + 1], the newest ones of its lengths[i]
    tokens. kv_cache [blocks, heads, block_size, 2 * head_dim]; tables [lanes, blocks of a lane] block numbers.
    """
    out = torch.empty_like(query)
    for lane, length in enumerate(lengths.tolist()):
        first, last = int(starts[lane]), int(starts[lane + 1])
        slots = torch.arange(length)
        slots = tables[lane].long()[slots // layout.block_size] * layout.block_size + slots % layout.block_size
        keys, values = (part.float() for part in layout.read(numbers(kv_cache), slots))  # [length, heads, head_dim]
        scores = torch.einsum("nhd,shd->hns", query[first:last].float(), keys) * scale
        newest = torch.arange(length - (last - first), length)
        scores = scores.masked_fill(torch.arange(length) > newest[:, None], -torch.inf)
        out[first:last] = torch.einsum("hns,shd->nhd", scores.softmax(dim=-1), values).to(out.dtype)
    return out


def decode_attention(
    query: Tensor,
    kv_cache: Tensor,
    layout: str,
    starts: Tensor,
    lengths: Tensor,
    tables: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """`decode_attention_reference` into `out`, like query; only where `readable_layout` names it. Tables
    are int32.
    """
    compiled = native()
    assert compiled is not None
    assert query.is_contiguous() and out.is_contiguous() and tables.stride(1) == 1
    assert kv_cache.stride(-1) == 1 and kv_cache.stride(2) == kv_cache.shape[-1]
    assert starts.dtype == lengths.dtype == tables.dtype == torch.int32
    _, heads, head_dim = query.shape
    compiled.decode_attention(
        query.data_ptr(),
        kv_cache.data_ptr(),
        out.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        tables.data_ptr(),
        tables.stride(0),
        len(lengths),
        heads,
        head_dim,
        kv_cache.shape[2],
        kv_cache.stride(0),
        kv_cache.stride(1),
        LAYOUTS[layout][0],
        scale,
    )


def write_cache(key: Tensor, value: Tensor, kv_cache: Tensor, layout: str, slots: Tensor) -> None:
    """`KVLayout.write` of key and value [N, heads, head_dim] at slots int64 [n], n <= N, where those are not negative,
    in FP8 rounded to the nearest number; only where `readable_layout` names the layout.
    """
    compiled = native()
    assert compiled is not None
    assert key.is_contiguous() and value.is_contiguous() and slots.is_contiguous() and slots.dtype == torch.int64
    assert kv_cache.stride(-1) == 1 and kv_cache.stride(2) == kv_cache.shape[-1]
    compiled.write_cache(
        key.data_ptr(),
        value.data_ptr(),
        kv_cache.data_ptr(),
        slots.data_ptr(),
        len(slots),
        key.shape[1],
        key.shape[2],
        kv_cache.shape[2],
        kv_cache.stride(0),
        kv_cache.stride(1),
        LAYOUTS[layout][0],
    )
