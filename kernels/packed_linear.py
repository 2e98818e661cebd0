"""Matrix product of few rows with a matrix that is packed once: what a decode step spends half its time on.

oneDNN, which vLLM uses, reads packed weights at about 60 % of the memory bandwidth when x has the 10 rows of one
panorama's lanes, because x's rows are far apart and the weights are not fetched ahead; and where a processor has no
instructions for bfloat16 it is slower still than in float32 (figures in docs/log.md). The kernels in
native/packed_linear.c (AMX) and native/packed_linear_vectors.h (AVX-512 with and without bfloat16, AVX2) read weights
nearly at full bandwidth.
`packable` says whether a weight can have them. Everything else stays with vLLM's own linear layers.

`packed_linear_reference` is the specification.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panoserve.kernels.native import Level, level, native

# As in native/packed.h: columns of y in a tile, columns of x in a tile, tiles in a chunk.
TILE, DEPTH, CHUNK = 16, 32, 8


def available() -> bool:
    """Whether this machine runs a kernel: one is built, and the processor has the instructions."""
    return level() > Level.NONE


def packable(weight: Tensor) -> bool:
    """Whether `weight` [N, K] can be packed for the kernel here."""
    return (
        available()
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.ndim == 2
        and weight.shape[0] % TILE == 0
        and weight.shape[1] % DEPTH == 0
    )


def pack(weight: Tensor) -> Tensor:
    """`weight` [N, K] in the order in which the kernel reads it, flat.

    Tiles of 16 outputs x 32 inputs, pairs of inputs adjacent: [16 pairs, 16 outputs, 2]. Eight tiles of inputs (a
    chunk) follow one another for one tile of outputs, then come the next outputs, then the next chunk.
    """
    n, k = weight.shape
    tiles = weight.view(n // TILE, TILE, k // DEPTH, DEPTH // 2, 2).permute(2, 0, 3, 1, 4)  # [K/32, N/16, 16, 16, 2]
    return torch.cat([chunk.transpose(0, 1).reshape(-1) for chunk in tiles.split(CHUNK)])


def unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack`: [n, k]."""
    steps = torch.arange(k // DEPTH).split(CHUNK)
    chunks = packed.split([len(s) * n * DEPTH for s in steps])
    tiles = torch.cat(
        [c.view(n // TILE, -1, DEPTH // 2, TILE, 2).transpose(0, 1) for c in chunks]
    )  # [K/32, N/16, 16, 16, 2]
    return tiles.permute(1, 3, 0, 2, 4).reshape(n, k)


def packed_linear_reference(x: Tensor, packed: Tensor) -> Tensor:
    """x [..., K] times the transpose of a packed weight [N, K], summed in float32: [..., N]."""
    k = x.shape[-1]
    return (x.float() @ unpack(packed, len(packed) // k, k).float().T).to(x.dtype)


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """`packed_linear_reference` by the kernel of this machine's level, for bfloat16.

    A row's result is the same whatever other rows x has.
    """
    compiled = native()
    assert compiled is not None and x.dtype == packed.dtype == torch.bfloat16
    k = x.shape[-1]
    n = len(packed) // k
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], n)
    scratch = x.new_empty(x.shape, dtype=torch.float32)
    compiled.packed_linear(x.data_ptr(), packed.data_ptr(), y.data_ptr(), scratch.data_ptr(), x.numel() // k, n, k)
    return y
