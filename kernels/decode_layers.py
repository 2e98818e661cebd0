"""All transformer layers of a decode step in one call, where every part of them has a kernel of ours.

With one panorama a layer's arithmetic takes a millisecond or two, and calling ten operators from Python, through vLLM's
layers, a good part of another (figures in docs/log.md). native/decode_layers.c calls the same kernels one after
another, so the numbers are the same, bit for bit, as those of `decode_layers_reference` and of the modules in
models/llamagen.py.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from panoserve.kernels.block import add_rms_norm, rms_norm, rope_split, silu_and_mul
from panoserve.kernels.decode_attention import LAYOUTS, decode_attention, write_cache
from panoserve.kernels.native import native
from panoserve.kernels.packed_linear import packed_linear

_STEP = struct.Struct("=13Q14q2d")  # decode_step in native/native.h
_LAYER = struct.Struct("=7Q")  # decode_layer


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights, the matrices packed (packed_linear.py), and its KV cache."""

    attention_norm: Tensor
    wqkv: Tensor
    wo: Tensor
    ffn_norm: Tensor
    w13: Tensor
    w2: Tensor
    cache: Tensor  # [blocks, streams * heads, block_size, 2 * head_dim]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What all layers share. Heads are those of one stream, head_dim is padded."""

    streams: int
    heads: int
    head_dim: int
    dim: int
    inner: int  # columns of w2's input
    layout: str  # of the caches: a KVLayout's name
    scale: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where a step's tokens are in the cache: see decode_attention.py."""

    slots: Tensor  # int64 [n]
    starts: Tensor  # int32 [lanes + 1]
    lengths: Tensor  # int32 [lanes]
    tables: Tensor  # int32 [lanes, blocks]


def decode_layers_reference(
    layers: list[Layer], sizes: Sizes, x: Tensor, rope: Tensor, lanes: Lanes
) -> tuple[Tensor, Tensor]:
    """What the last layer adds to the residual, and the residual: both [R, D], R = tokens * streams.

    x [R, D] are the embedded tokens, rope complex64 [tokens, rotated / 2]; new keys and values are put into the caches.
    """
    residual = x.clone()
    for number, layer in enumerate(layers):
        if number == 0:
            x = rms_norm(x, layer.attention_norm, sizes.epsilon)
        else:
            x, residual = add_rms_norm(x, residual, layer.attention_norm, sizes.epsilon)
        qkv = packed_linear(x, layer.wqkv).view(len(rope), sizes.streams, 3 * sizes.heads, sizes.head_dim)
        q, k, v = (part.view(len(rope), -1, sizes.head_dim) for part in rope_split(qkv, rope))
        write_cache(k, v, layer.cache, sizes.layout, lanes.slots)
        out = torch.empty_like(q)
        decode_attention(q, layer.cache, sizes.layout, lanes.starts, lanes.lengths, lanes.tables, sizes.scale, out)
        x = packed_linear(out.view(len(x), -1), layer.wo)
        x, residual = add_rms_norm(x, residual, layer.ffn_norm, sizes.epsilon)
        x = packed_linear(silu_and_mul(packed_linear(x, layer.w13)), layer.w2)
    return x, residual


class DecodeLayers:
    """`decode_layers_reference` of given layers in one call.

    seconds: of all calls so far, those in matrix products and those in attention.
    """

    def __init__(self, layers: list[Layer], sizes: Sizes) -> None:
        self.layers, self.sizes = layers, sizes
        self.seconds = array("d", (0.0, 0.0))
        cache = layers[0].cache
        for layer in layers:
            assert layer.cache.stride() == cache.stride() and layer.cache.shape == cache.shape
        assert cache.stride(-1) == 1 and cache.stride(2) == cache.shape[-1]
        self._packed = b"".join(
            _LAYER.pack(
                *(
                    tensor.data_ptr()
                    for tensor in (
                        layer.attention_norm, layer.wqkv, layer.wo, layer.ffn_norm, layer.w13, layer.w2, layer.cache
                    )
                )
            )
            for layer in layers
        )  # fmt: skip

    def take_seconds(self) -> tuple[float, float]:
        """The seconds so far, which are forgotten."""
        products, attention = self.seconds
        self.seconds[0] = self.seconds[1] = 0.0
        return products, attention

    def __call__(self, x: Tensor, rope: Tensor, lanes: Lanes) -> tuple[Tensor, Tensor]:
        """As `decode_layers_reference`; x is overwritten and returned."""
        compiled = native()
        assert compiled is not None
        s, cache, rows = self.sizes, self.layers[0].cache, len(x)
        width = s.heads * s.head_dim
        assert x.is_contiguous() and x.dtype == torch.bfloat16
        assert rope.is_contiguous() and rope.dtype == torch.complex64 and len(rope) * s.streams == rows
        assert lanes.slots.is_contiguous() and lanes.slots.dtype == torch.int64
        assert lanes.starts.dtype == lanes.lengths.dtype == lanes.tables.dtype == torch.int32
        assert lanes.tables.stride(1) == 1
        residual = torch.empty_like(x)
        room = [max(3 * width, 2 * s.inner), max(width, s.inner), width, width]
        wide, q, k, v = (x.new_empty(rows, columns) for columns in room)
        scratch = x.new_empty(rows, max(s.dim, width, s.inner), dtype=torch.float32)
        pointers = (
            x, residual, wide, q, k, v, scratch, rope, lanes.slots, lanes.starts, lanes.lengths, lanes.tables
        )  # fmt: skip
        step = _STEP.pack(
            *(tensor.data_ptr() for tensor in pointers), self.seconds.buffer_info()[0],
            len(rope), s.streams, s.heads, s.head_dim, 2 * rope.shape[1], s.dim, s.inner, len(lanes.slots),
            lanes.tables.stride(0), len(lanes.lengths), LAYOUTS[s.layout][0], cache.shape[2], cache.stride(0),
            cache.stride(1), s.scale, s.epsilon,
        )  # fmt: skip
        compiled.decode_layers(self._packed, step)
        return x, residual
