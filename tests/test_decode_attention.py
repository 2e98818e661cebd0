"""Attention of a few new tokens a lane against its plain twin, and when vLLM's layers use it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoserve.kernels import decode_attention as da
from panoserve.kernels.kv_layout import CPU_TILINGS, KVLayout, attention_isa, cpu_layout, numbers
from panoserve.kernels.native import Level, level, lowered, native
from panoserve.serve.settings import set_environment

KERNELS = [
    (name, at) for name, (_, least) in da.LAYOUTS.items() for at in Level if least <= at <= min(level(), max(least, 2))
]
needs_compiled = pytest.mark.skipif(native() is None, reason="needs a C compiler at installation")
kernels = pytest.mark.parametrize(("name", "at"), KERNELS, ids=[f"{name}-{at.name}" for name, at in KERNELS])
HEADS = 3


def a_layout(name: str, block_size: int, head_dim: int) -> KVLayout:
    """vLLM's layout of that name, which tests/test_kv_layout.py compares with what vLLM writes."""
    [(keys, values)] = [tilings for found, *tilings in CPU_TILINGS if found == name.removesuffix(" fp8")]
    return KVLayout(name, block_size, head_dim, keys, values, halves=True)


def a_cache(name: str, blocks: int, block_size: int, head_dim: int, fill: float) -> Tensor:
    """As vLLM hands it over."""
    cache = torch.full((blocks, HEADS, block_size, 2 * head_dim), fill).bfloat16()
    return cache.to(torch.float8_e4m3fn).view(torch.uint8) if name.endswith("fp8") else cache


class Lanes:
    """Lanes of the given lengths with `tokens` new tokens each, their blocks in random order in a cache.

    Slots that belong to no token hold NaN: a kernel that reads them is found out.
    """

    def __init__(self, name: str, lengths: list[int], tokens: list[int], block_size: int, head_dim: int) -> None:
        generator = torch.Generator().manual_seed(sum(lengths) + head_dim)
        self.layout = a_layout(name, block_size, head_dim)
        blocks = max(-(-length // block_size) for length in lengths) + 1
        order = torch.randperm(len(lengths) * blocks, generator=generator)
        self.tables = order.view(len(lengths), blocks).to(torch.int32)
        self.cache = a_cache(name, len(order), block_size, head_dim, torch.nan)
        for lane, length in enumerate(lengths):
            slots = torch.arange(length)
            slots = self.tables[lane].long()[slots // block_size] * block_size + slots % block_size
            keys, values = torch.randn(2, length, HEADS, head_dim, generator=generator).bfloat16()
            cache = numbers(self.cache)
            self.layout.write(cache, slots, keys.to(cache.dtype), values.to(cache.dtype))
        self.starts = torch.tensor([0, *tokens]).cumsum(0).to(torch.int32)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.query = torch.randn(sum(tokens), HEADS, head_dim, generator=generator).bfloat16()
        self.scale = head_dim**-0.5

    def reference(self) -> Tensor:
        return da.decode_attention_reference(
            self.query, self.cache, self.layout, self.starts, self.lengths, self.tables, self.scale
        )

    def compiled(self) -> Tensor:
        out = torch.full_like(self.query, torch.nan)
        da.decode_attention(
            self.query, self.cache, self.layout.name, self.starts, self.lengths, self.tables, self.scale, out
        )
        return out


def test_the_reference_is_causal_attention() -> None:
    lanes = Lanes("vec", [40], [3], block_size=32, head_dim=32)
    slots = lanes.tables[0].long()[torch.arange(40) // 32] * 32 + torch.arange(40) % 32
    keys, values = (part.float().transpose(0, 1) for part in lanes.layout.read(lanes.cache, slots))
    query = torch.zeros(HEADS, 40, 32)
    query[:, -3:] = lanes.query.float().transpose(0, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
    torch.testing.assert_close(lanes.reference().float(), expected[:, -3:].transpose(0, 1), atol=1e-2, rtol=1e-2)


@kernels
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("block_size", [32, 64])
def test_the_kernel_computes_what_the_reference_does(name: str, at: Level, block_size: int, head_dim: int) -> None:
    lanes = Lanes(name, [1, 2, 31, 32, 33, 64, 65, 200, 7], [1, 2, 3, 1, 4, 1, 2, 1, 7], block_size, head_dim)
    # Weights are rounded to bfloat16 before the sum of at most 200 values of about 1.
    with lowered(at):
        made = lanes.compiled()
    torch.testing.assert_close(made, lanes.reference(), atol=1.6e-2, rtol=1.6e-2)


@kernels
def test_large_scores_do_not_overflow(name: str, at: Level) -> None:
    lanes = Lanes(name, [50, 90], [1, 1], block_size=32, head_dim=64)
    lanes.query *= 60
    with lowered(at):
        out = lanes.compiled()
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out, lanes.reference(), atol=3e-2, rtol=3e-2)


@kernels
def test_a_token_does_not_depend_on_the_other_lanes(name: str, at: Level) -> None:
    together = Lanes(name, [70, 33, 140], [1, 2, 1], block_size=32, head_dim=64)
    with lowered(at):
        out = together.compiled()
        for lane in range(3):
            first, last = together.starts[lane : lane + 2].tolist()
            alone = torch.empty_like(together.query[first:last])
            da.decode_attention(
                together.query[first:last],
                together.cache,
                name,
                torch.tensor([0, last - first], dtype=torch.int32),
                together.lengths[lane : lane + 1],
                together.tables[lane : lane + 1],
                together.scale,
                alone,
            )
            assert torch.equal(alone, out[first:last])


@needs_compiled
@pytest.mark.parametrize("name", sorted(da.LAYOUTS))
@pytest.mark.parametrize("head_dim", [32, 96])
def test_keys_and_values_are_put_where_the_layout_has_them(name: str, head_dim: int) -> None:
    layout = a_layout(name, 32, head_dim)
    key, value = torch.randn(2, 6, HEADS, head_dim, generator=torch.Generator().manual_seed(0)).bfloat16()
    slots = torch.tensor([0, 95, -1, 40, 33])  # the sixth token is padding and has no slot
    written = a_cache(name, 3, 32, head_dim, 0)
    expected = numbers(written.clone())
    da.write_cache(key, value, written, name, slots)
    real = slots >= 0
    layout.write(expected, slots[real], key[:5][real].to(expected.dtype), value[:5][real].to(expected.dtype))
    assert torch.equal(numbers(written).float(), expected.float())


@needs_compiled
def test_every_number_is_rounded_to_the_nearest_of_fp8() -> None:
    """All finite bfloat16 numbers and infinity, against torch's conversion."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    every = bits[~bits.isnan()]
    every = torch.nn.functional.pad(every, (0, -len(every) % (HEADS * 32))).view(-1, HEADS, 32)
    cache = a_cache("vec fp8", -(-len(every) // 32), 32, 32, 0)
    slots = torch.arange(len(every))
    da.write_cache(every, every, cache, "vec fp8", slots)
    for part in a_layout("vec fp8", 32, 32).read(numbers(cache), slots):
        assert torch.equal(part.float(), every.float().clamp(-448, 448).to(torch.float8_e4m3fn).float())


def test_only_a_cache_that_a_kernel_can_read_is_given_to_it() -> None:
    def readable(
        cache: torch.dtype, isa: str, head_dim: int, block_size: int, dtype: torch.dtype = torch.bfloat16
    ) -> str | None:
        return da.readable_layout(torch.zeros(1, 1, block_size, 2 * head_dim, dtype=cache), isa, dtype)

    assert readable(torch.bfloat16, "vec", 64, 32) == ("vec" if level() > Level.NONE else None)
    if torch.cpu._is_amx_tile_supported():  # else vLLM's operator, which is asked for its layout, would not run
        assert readable(torch.bfloat16, "amx", 64, 32) == ("amx" if level() == Level.AMX else None)
    if torch.cpu._is_avx512_supported():
        assert readable(torch.uint8, "vec", 64, 32) == ("vec fp8" if level() >= Level.AVX512 else None)
        assert readable(torch.uint8, "vec", 64, 32, torch.float32) is None
    assert readable(torch.float32, "vec", 64, 32, torch.float32) is None
    assert readable(torch.bfloat16, "vec", 48, 32) is None
    assert readable(torch.bfloat16, "vec16", 64, 16) is None


class Layer:
    _k_scale_float = _v_scale_float = 1.0

    def __init__(self, isa: str) -> None:
        self.isa = isa


@pytest.mark.skipif(level() == Level.NONE, reason="needs AVX2 and a C compiler at installation")
@pytest.mark.parametrize("tokens", [[1, 1, 2], [1, 9, 2]])
@pytest.mark.parametrize("cache_dtype", ["auto", "fp8"])
def test_vllms_layer_gives_the_same_with_and_without_the_kernel(
    tokens: list[int], cache_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cache_dtype == "fp8" and (not torch.cpu._is_avx512_supported() or level() < Level.AVX512):
        pytest.skip("vLLM takes FP8 caches with AVX-512 only")
    set_environment()
    pytest.importorskip("vllm")
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata

    from panoserve.models import attention

    current_platform.import_kernels()
    layer = Layer(attention_isa(torch.bfloat16, 32, 64, cache_dtype))
    in_cache = torch.uint8 if cache_dtype == "fp8" else torch.bfloat16
    name = cpu_layout(in_cache, 32, 64, layer.isa).name + da.SUFFIXES[in_cache]
    if name not in da.LAYOUTS:
        pytest.skip(f"{name} is vLLM's alone")
    lanes = Lanes(name, [40, 64, 130], tokens, block_size=32, head_dim=64)
    bare = numbers(lanes.cache)
    bare.copy_(bare.float().nan_to_num_(0.0).to(bare.dtype))  # vLLM multiplies what lies behind the last slot by zero
    impl = object.__new__(attention.FewTokensAttentionImpl)
    vars(impl).update(
        num_heads=HEADS, num_kv_heads=HEADS, head_size=64, scale=lanes.scale, alibi_slopes=None, sliding_window=-1,
        logits_soft_cap=0, sinks=None, attn_type="decoder", kv_cache_dtype=cache_dtype, use_zentorch_sdpa=False,
    )  # fmt: skip
    metadata = CPUAttentionMetadata(
        num_actual_tokens=sum(tokens),
        max_query_len=max(tokens),
        query_start_loc=lanes.starts,
        max_seq_len=130,
        seq_lens=lanes.lengths,
        block_table=lanes.tables,
        slot_mapping=torch.empty(0),
        scheduler_metadata=ops.cpu_attn_get_scheduler_metadata(
            num_reqs=3,
            num_heads=HEADS,
            num_kv_heads=HEADS,
            head_dim=64,
            seq_lens=lanes.lengths,
            dtype=torch.bfloat16,
            query_start_loc=lanes.starts,
            causal=True,
            sliding_window_size=-1,
            isa=layer.isa,
            enable_kv_split=False,
            dynamic_causal=None,
            kv_cache_dtype=cache_dtype,
        ),
    )
    calls = []
    monkeypatch.setattr(attention, "decode_attention", lambda *args: calls.append(1) or da.decode_attention(*args))
    ours, theirs = (torch.empty_like(lanes.query) for _ in range(2))
    unused = torch.empty(0)
    impl.forward(layer, lanes.query, unused, unused, lanes.cache, metadata, ours)
    CPUAttentionBackendImpl.forward(impl, layer, lanes.query, unused, unused, lanes.cache, metadata, theirs)
    assert len(calls) == (max(tokens) <= attention.FEW_TOKENS)
    torch.testing.assert_close(ours, theirs, atol=1.6e-2, rtol=1.6e-2)
