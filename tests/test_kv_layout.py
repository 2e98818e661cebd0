"""KVLayout against vLLM's own operator: what vLLM writes, we must find, and what we write, vLLM must read alike."""

from __future__ import annotations

import pytest
import torch
from vllm_cache import HEADS, empty_layer, write_by_vllm

from panoserve.errors import EnvironmentProblem
from panoserve.kernels.kv_layout import (
    CPU_TILINGS,
    KVLayout,
    attention_isa,
    cpu_layout,
    flash_layout,
    kv_layout,
    movable,
    numbers,
)

# Every head size of a published model (64; 100 padded to 112 or 128; 128) and one that is 16 modulo 32; block sizes:
# vLLM's default (128), the smallest it takes (32), one that is no multiple of 32 (16), and 96 (not a power of two).
SHAPES = [(64, 128), (64, 32), (64, 96), (64, 16), (80, 32), (112, 128), (128, 128), (128, 32)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "block_size"), SHAPES)
def test_reads_what_vllm_wrote_and_writes_the_same_bytes(dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    """Slots scattered over blocks, written by vLLM, read by us; then written by us: the whole cache is identical."""
    slots = torch.randperm(3 * block_size)[: block_size + 5]
    keys, values = torch.randn(2, len(slots), HEADS, head_dim).to(dtype)
    theirs = empty_layer(3, block_size, head_dim, dtype)
    write_by_vllm(theirs, slots, keys, values)

    layout = kv_layout(theirs)
    read_keys, read_values = layout.read(theirs, slots)
    assert torch.equal(read_keys, keys)
    assert torch.equal(read_values, values)

    ours = empty_layer(3, block_size, head_dim, dtype)
    layout.write(ours, slots, keys, values)
    assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="vLLM takes FP8 caches with AVX-512 only")
@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 32), (128, 64)])
def test_reads_what_vllm_wrote_in_fp8(head_dim: int, block_size: int) -> None:
    slots = torch.randperm(3 * block_size)[: block_size + 5]
    keys, values = torch.randn(2, len(slots), HEADS, head_dim).to(torch.float8_e4m3fn).bfloat16()
    theirs = empty_layer(3, block_size, head_dim, torch.uint8)
    write_by_vllm(theirs, slots, keys, values)
    layout = kv_layout(theirs, attention_isa(torch.bfloat16, block_size, head_dim, "fp8"))
    for read, written in zip(layout.read(numbers(theirs), slots), (keys, values), strict=True):
        assert torch.equal(read.bfloat16(), written)
    ours = empty_layer(3, block_size, head_dim, torch.uint8)
    layout.write(numbers(ours), slots, *(part.to(torch.float8_e4m3fn) for part in (keys, values)))
    assert torch.equal(numbers(ours).float(), numbers(theirs).float())  # vLLM writes -0 as 0


@pytest.mark.parametrize(
    ("cache_dtype", "device", "expected"),
    [("auto", "cuda", True), ("fp8", "cpu", True), ("fp8", "cuda", False), ("fp8_e5m2", "cpu", False)],
)
def test_which_caches_can_be_moved(cache_dtype: str, device: str, expected: bool) -> None:
    assert movable(cache_dtype, device) == expected


def test_every_isa_of_this_machine_is_found() -> None:
    """vLLM picks amx for bfloat16 where the machine has it; forcing `vec` must find the transposed layout instead."""
    if attention_isa(torch.bfloat16, 128, 64) == "amx":
        assert cpu_layout(torch.bfloat16, 128, 64).name == "amx"
    assert cpu_layout(torch.float32, 128, 64).name == "vec"
    assert cpu_layout(torch.bfloat16, 128, 64, "vec").name == "vec"
    assert cpu_layout(torch.bfloat16, 128, 112).name == "vec"  # head size 16 modulo 32: vec16, stored as vec


@pytest.mark.parametrize(("name", "keys", "values"), CPU_TILINGS)
def test_tilings_are_bijections(name: str, keys: object, values: object) -> None:
    """Also for the instruction sets that this machine lacks: every (slot, dim) has exactly one place in the block."""
    layout = KVLayout(name, 32, 64, keys, values, halves=True)  # type: ignore[arg-type]
    layer = torch.full((2, HEADS, 32, 128), -1.0)
    slots = torch.arange(64)
    key_ids, value_ids = torch.arange(2 * 64 * HEADS * 64, dtype=torch.float32).view(2, 64, HEADS, 64)
    layout.write(layer, slots, key_ids, value_ids)
    assert torch.equal(layer.flatten().sort().values, torch.arange(layer.numel(), dtype=torch.float32))
    assert torch.equal(layout.read(layer, slots)[0], key_ids)


def test_documented_places_in_an_amx_block() -> None:
    """Slot 17, dim 35. Keys [slots/16][pairs of dims][16 slots][2 dims]; values [dims/16][pairs of slots][16][2]."""
    layout = KVLayout("amx", 32, 64, CPU_TILINGS[1][1], CPU_TILINGS[1][2], halves=True)
    layer = torch.zeros(1, 1, 32, 128)
    key = torch.arange(1.0, 65.0).view(1, 1, 64)
    layout.write(layer, torch.tensor([17]), key, -key)
    keys, values = layer.flatten().chunk(2)
    assert keys.view(2, 32, 16, 2)[17 // 16, 35 // 2, 17 % 16, 35 % 2] == 36.0
    assert values.view(4, 16, 16, 2)[35 // 16, 17 // 2, 35 % 16, 17 % 2] == -36.0


def test_flash_layout_reads_key_and_value_of_a_slot_side_by_side() -> None:
    """FlashAttention's logical [blocks, heads, slots, key | value], also when slots are outside heads in memory."""
    layout = flash_layout(16, 64)
    layer = torch.zeros(4, 16, HEADS, 128).transpose(1, 2)  # LBNHC: logical [blocks, heads, slots, 2 * head_dim]
    slots = torch.tensor([3, 16, 40])
    keys, values = torch.randn(2, 3, HEADS, 64)
    layout.write(layer, slots, keys, values)
    assert torch.equal(layer[1, :, 0, :64], keys[1])
    assert torch.equal(layer[2, :, 8, 64:], values[2])
    assert torch.equal(layout.read(layer, slots)[0], keys)


@pytest.mark.parametrize("layer", [torch.zeros(2, 4, 16, 3, 8), torch.zeros(4, 2, 32, 128, dtype=torch.int8)])
def test_unknown_caches_are_refused(layer: torch.Tensor) -> None:
    with pytest.raises(EnvironmentProblem, match="recompute"):
        kv_layout(layer)
