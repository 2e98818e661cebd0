"""`move_kv` for a GPU: one Triton program per moved slot, head and layer.

Works on any layout, because it only uses the strides of `KVLayout.parts`. Without a GPU it runs under Triton's
interpreter (TRITON_INTERPRET=1 set before Triton is imported), which is how it is tested.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from panoserve.kernels.kv_layout import KVLayout, Tiling
from panoserve.kernels.kv_shift import KVMove


@triton.jit
def _slot_pointer(  # type: ignore[no-untyped-def]
    base, slot, head, layer, layer_stride, block_stride, row_stride, slot_stride, head_stride,
    BLOCK_SIZE: tl.constexpr, TILE_SLOTS: tl.constexpr,
):  # fmt: skip
    """Address of dim 0 of `slot`: block, tile row and slot inside it, all in elements."""
    offset = slot % BLOCK_SIZE
    place = layer * layer_stride + (slot // BLOCK_SIZE) * block_stride + head * head_stride
    return base + place + (offset // TILE_SLOTS) * row_stride + (offset % TILE_SLOTS) * slot_stride


@triton.jit
def _dims(index, column_stride, dim_stride, TILE_DIMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offset of head dim `index` from dim 0."""
    return (index // TILE_DIMS) * column_stride + (index % TILE_DIMS) * dim_stride


@triton.jit
def _move_kernel(  # type: ignore[no-untyped-def]
    keys, values, source, destination, cosines, sines,
    k_layer, k_block, k_row, k_slot, k_head, k_column, k_dim,
    v_layer, v_block, v_row, v_slot, v_head, v_column, v_dim,
    HEAD_PAIRS: tl.constexpr, ROPE_PAIRS: tl.constexpr, PAIRS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    K_SLOTS: tl.constexpr, K_DIMS: tl.constexpr, V_SLOTS: tl.constexpr, V_DIMS: tl.constexpr,
):  # fmt: skip
    move = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    layer = tl.program_id(2).to(tl.int64)
    old, new = tl.load(source + move), tl.load(destination + move)
    pair = tl.arange(0, PAIRS)
    inside = pair < HEAD_PAIRS

    turned = pair < ROPE_PAIRS  # beyond: padding, turned by nothing
    cos = tl.load(cosines + move * ROPE_PAIRS + pair, mask=turned, other=1.0)
    sin = tl.load(sines + move * ROPE_PAIRS + pair, mask=turned, other=0.0)
    first = _dims(2 * pair, k_column, k_dim, K_DIMS)
    second = _dims(2 * pair + 1, k_column, k_dim, K_DIMS)
    old_key = _slot_pointer(keys, old, head, layer, k_layer, k_block, k_row, k_slot, k_head, BLOCK_SIZE, K_SLOTS)
    new_key = _slot_pointer(keys, new, head, layer, k_layer, k_block, k_row, k_slot, k_head, BLOCK_SIZE, K_SLOTS)
    a = tl.load(old_key + first, mask=inside).to(tl.float32)
    b = tl.load(old_key + second, mask=inside).to(tl.float32)
    tl.store(new_key + first, (a * cos - b * sin).to(keys.dtype.element_ty), mask=inside)
    tl.store(new_key + second, (b * cos + a * sin).to(keys.dtype.element_ty), mask=inside)

    first = _dims(2 * pair, v_column, v_dim, V_DIMS)
    second = _dims(2 * pair + 1, v_column, v_dim, V_DIMS)
    old_value = _slot_pointer(values, old, head, layer, v_layer, v_block, v_row, v_slot, v_head, BLOCK_SIZE, V_SLOTS)
    new_value = _slot_pointer(values, new, head, layer, v_layer, v_block, v_row, v_slot, v_head, BLOCK_SIZE, V_SLOTS)
    tl.store(new_value + first, tl.load(old_value + first, mask=inside), mask=inside)
    tl.store(new_value + second, tl.load(old_value + second, mask=inside), mask=inside)


def move_stack(stack: Tensor, layout: KVLayout, move: KVMove, turns: Tensor | None) -> None:
    """Carry out `move` in `stack` [L, num_blocks, heads, block_size, 2 * head_dim], in place.

    turns: complex64 [n, pairs] as RopeSpec.turns, or None to move keys as they are.
    """
    device = stack.device
    source, destination = move.source.to(device), move.destination.to(device)
    if turns is None:
        turns = torch.ones(len(move), 1, dtype=torch.complex64)
    cosines, sines = turns.real.contiguous().to(device), turns.imag.contiguous().to(device)
    keys, values = layout.parts(stack)
    tiles: tuple[Tiling, Tiling] = (layout.keys, layout.values)
    _move_kernel[(len(move), stack.shape[2], stack.shape[0])](
        keys, values, source, destination, cosines, sines,
        *keys.stride(), *values.stride(),
        HEAD_PAIRS=layout.head_dim // 2, ROPE_PAIRS=turns.shape[1],
        PAIRS=triton.next_power_of_2(layout.head_dim // 2), BLOCK_SIZE=layout.block_size,
        K_SLOTS=tiles[0].slots, K_DIMS=tiles[0].dims, V_SLOTS=tiles[1].slots, V_DIMS=tiles[1].dims,
    )  # fmt: skip
