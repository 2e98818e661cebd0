"""Where a slot's key and value lie inside a layer's paged KV cache, for every layout that vLLM 0.32 uses.

vLLM hands a KV connector (`register_kv_caches`) one tensor per layer: [num_blocks, heads, block_size, 2 * head_dim].
That shape is logical. On a GPU (FlashAttention) the last axis is the slot's key followed by its value. On a CPU, one
head's share of a block is really two halves, all keys and then all values, each tiled the way the instruction set in
use likes to read it; `cpu_layout` finds out which by writing through vLLM's own operator and reading back.

A *slot* is block_index * block_size + offset. head_dim is the cached one, which may be padded. An FP8 cache is handed
over as bytes; `numbers` shows them as what they stand for, e4m3, which is what everything else here takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from panoserve.errors import EnvironmentProblem

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one head's [block_size, head_dim] matrix of keys (or values) is stored.

    The matrix is cut into tiles of `slots` x `dims`. With `dims_outer` False, memory order is (tile row = slots, tile
    column = dims, slot in tile, dim in tile); with True it is (tile column = dims, tile row = slots, dim in tile, slot
    in tile). So (1, 1, False) is row-major [block_size, head_dim] and (1, 1, True) is its transpose.
    """

    slots: int = 1
    dims: int = 1
    dims_outer: bool = False

    def view(self, part: Tensor, block_size: int) -> Tensor:
        """[..., blocks, heads, block_size * head_dim] -> [..., blocks, row, slot, heads, column, dim], the same memory.

        `row`, `slot` index the tile row and the slot inside it, `column`, `dim` the tile column and the dim inside it.
        """
        rows, columns = block_size // self.slots, part.shape[-1] // block_size // self.dims
        if self.dims_outer:
            tiles = part.unflatten(-1, (columns, rows, self.dims, self.slots))
            return tiles.movedim((-3, -1), (-5, -4))
        tiles = part.unflatten(-1, (rows, columns, self.slots, self.dims))
        return tiles.movedim((-4, -2), (-5, -4))


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The layout of a layer's cache tensor [num_blocks, heads, block_size, 2 * head_dim]."""

    name: str
    block_size: int
    head_dim: int
    keys: Tiling
    values: Tiling
    halves: bool  # a head's block is all keys, then all values; otherwise every slot holds its key, then its value

    def check(self, layer: Tensor) -> None:
        """Raise EnvironmentProblem if `layer` is not a cache tensor of this layout."""
        expected = (self.block_size, 2 * self.head_dim)
        if layer.dim() != 4 or tuple(layer.shape[2:]) != expected or not layer.dtype.is_floating_point:
            raise EnvironmentProblem(
                f"a layer's KV cache has shape {tuple(layer.shape)} and dtype {layer.dtype}, but layout {self.name!r} "
                f"expects [blocks, heads, {expected[0]}, {expected[1]}] of a floating point dtype; this is a vLLM "
                "that panoserve does not know: use context='recompute'"
            )

    def parts(self, layer: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of `layer` [..., blocks, heads, block_size, 2 * head_dim] as views, see Tiling.view."""
        if self.halves:
            keys, values = layer.flatten(-2).chunk(2, dim=-1)
            return self.keys.view(keys, self.block_size), self.values.view(values, self.block_size)
        # [..., blocks, heads, slot, dim] -> [..., blocks, row, slot=1, heads, column, dim=1]
        keys, values = (part.transpose(-3, -2)[..., None, :, :, None] for part in layer.chunk(2, dim=-1))
        return keys, values

    def read(self, layer: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [..., n, heads, head_dim] of `slots` [n] (copies)."""
        keys, values = self.parts(layer)
        return gather(keys, self.keys, slots, self.block_size), gather(values, self.values, slots, self.block_size)

    def write(self, layer: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [..., n, heads, head_dim] at `slots` [n]."""
        key_view, value_view = self.parts(layer)
        scatter(key_view, self.keys, slots, self.block_size, keys)
        scatter(value_view, self.values, slots, self.block_size, values)


def _words(tiles: Tensor, tiling: Tiling) -> Tensor:
    """The same memory with the dims of a tile seen as one machine word, where they fit one: 8 times faster to index.
    FP8 numbers, which torch does not index, always as bytes.
    """
    dims = 1 if tiling.dims_outer else tiling.dims
    word = _WORDS.get(dims * tiles.element_size())
    return tiles if word is None or (tiling.dims_outer and tiles.element_size() > 1) else tiles.view(word)


def _index(tiling: Tiling, slots: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    offset = slots % block_size
    return slots // block_size, offset // tiling.slots, offset % tiling.slots


def gather(tiles: Tensor, tiling: Tiling, slots: Tensor, block_size: int) -> Tensor:
    """Rows `slots` [n] of a `Tiling.view` [..., blocks, row, slot, heads, column, dim]: [..., n, heads, head_dim]."""
    index = _index(tiling, slots, block_size)
    lead = (slice(None),) * (tiles.dim() - 6)
    return _words(tiles, tiling)[lead + index].flatten(-2).view(tiles.dtype)


def scatter(tiles: Tensor, tiling: Tiling, slots: Tensor, block_size: int, rows: Tensor) -> None:
    """The inverse of `gather`: store `rows` [..., n, heads, head_dim]."""
    index = _index(tiling, slots, block_size)
    lead = (slice(None),) * (tiles.dim() - 6)
    words = _words(tiles, tiling)
    words[lead + index] = rows.contiguous().view(words.dtype).unflatten(-1, words.shape[-2:])


def flash_layout(block_size: int, head_dim: int) -> KVLayout:
    """GPU FlashAttention: logical [blocks, heads, slots, key | value], whatever the strides (LBNHC and LBHNC alike)."""
    return KVLayout("flash", block_size, head_dim, Tiling(), Tiling(), halves=False)


# (name, keys, values): read from vLLM's csrc/cpu/cpu_attn_*.hpp; those of x86 are confirmed by tests on the machine.
CPU_TILINGS = (
    ("vec", Tiling(dims_outer=True), Tiling()),  # vec, vec16, rvv, vsx, vxe; neon except bfloat16 with BFMMLA
    ("amx", Tiling(16, 2), Tiling(2, 16, dims_outer=True)),  # amx: bfloat16 with AMX tiles
    ("bfmmla", Tiling(8, 4), Tiling(4, 2, dims_outer=True)),  # neon: bfloat16 with BFMMLA
)


def attention_isa(dtype: torch.dtype, block_size: int, head_dim: int, cache_dtype: str = "auto") -> str:
    """The instruction set that vLLM's CPU attention will pick for a model's dtype and such a cache: amx, vec, ..."""
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    return _get_attn_isa(dtype, block_size, head_dim, cache_dtype)


def movable(cache_dtype: str, device: str) -> bool:
    """Whether a cache of vLLM's `cache_dtype` on a kind of device can be moved; where not, only `recompute` works."""
    return "fp8" not in cache_dtype or (cache_dtype in ("fp8", "fp8_e4m3") and device == "cpu")


def numbers(layer: Tensor) -> Tensor:
    """A cache tensor, the bytes of an FP8 one seen as e4m3 numbers (what vLLM means by `fp8`)."""
    return layer.view(torch.float8_e4m3fn) if layer.dtype == torch.uint8 else layer


@cache
def cpu_layout(dtype: torch.dtype, block_size: int, head_dim: int, isa: str | None = None) -> KVLayout:
    """The layout that vLLM's CPU attention uses, found by writing one block with vLLM's operator and reading it back.

    dtype: of the cache tensor as vLLM hands it over, uint8 for FP8. isa: what vLLM's attention layer says it uses
    (`layer.isa`); None asks vLLM. Raises EnvironmentProblem if no known layout fits (a vLLM newer than this file).
    """
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    isa = isa or attention_isa(dtype, block_size, head_dim)
    generator = torch.Generator().manual_seed(0)
    layer = torch.zeros(1, 1, block_size, 2 * head_dim, dtype=dtype)
    keys, values = torch.randn(2, block_size, 1, head_dim, generator=generator).to(numbers(layer).dtype)
    key_cache, value_cache = layer.view(1, 1, 2 * block_size, head_dim).chunk(2, dim=2)
    slots = torch.arange(block_size)
    if dtype == torch.uint8:
        fresh = (keys.bfloat16(), values.bfloat16())
        ops.cpu_attn_reshape_and_cache(*fresh, key_cache, value_cache, slots, isa, kv_cache_dtype="fp8")
    else:
        ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, slots, isa)
    for name, key_tiling, value_tiling in CPU_TILINGS:
        if any(block_size % tiling.slots or head_dim % tiling.dims for tiling in (key_tiling, value_tiling)):
            continue
        layout = KVLayout(name, block_size, head_dim, key_tiling, value_tiling, halves=True)
        read = layout.read(numbers(layer), slots)
        if all(torch.equal(found.float(), put.float()) for found, put in zip(read, (keys, values), strict=True)):
            return layout
    raise EnvironmentProblem(
        f"vLLM's CPU attention ({isa}, {dtype}, block size {block_size}, head size {head_dim}) stores keys and values "
        "in a layout that panoserve does not know; install the pinned vLLM, or use context='recompute'"
    )


def kv_layout(layer: Tensor, isa: str | None = None) -> KVLayout:
    """The layout of a cache tensor as vLLM hands it to a KV connector; `isa` as in `cpu_layout`, ignored on a GPU."""
    fp8 = layer.dtype == torch.uint8 and layer.device.type == "cpu"
    if layer.dim() != 4 or not (layer.dtype.is_floating_point or fp8):
        raise EnvironmentProblem(
            f"a layer's KV cache has shape {tuple(layer.shape)} and dtype {layer.dtype}, but panoserve moves only "
            "[blocks, heads, slots, 2 * head_dim] in float32, float16 or bfloat16, and in fp8 on a CPU; leave "
            "--kv-cache-dtype out, or use context='recompute'"
        )
    block_size, head_dim = layer.shape[2], layer.shape[3] // 2
    if layer.device.type == "cpu":
        return cpu_layout(layer.dtype, block_size, head_dim, isa)
    return flash_layout(block_size, head_dim)
