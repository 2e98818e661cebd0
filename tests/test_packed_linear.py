"""The packed matrix product against plain PyTorch, and the vLLM layers that use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from panoserve.kernels import packed_linear as pl
from panoserve.kernels.native import Level, level, lowered
from panoserve.serve.settings import set_environment

needs_kernel = pytest.mark.skipif(not pl.available(), reason="needs AVX2 and a C compiler at installation")
levels = pytest.mark.parametrize("at", [one for one in Level if Level.NONE < one <= level()], ids=lambda at: at.name)
SHAPES = [(16, 32), (48, 256), (80, 288), (2304, 768), (96, 3200)]  # whole and broken chunks; one to many tiles
ROWS = [1, 10, 16, 17, 33, 40, 48, 49, 192, 200, 400]  # every number of row tiles, groups and panels


def some_weight(n: int, k: int) -> Tensor:
    return (torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) * k**-0.5).bfloat16()


def some_rows(m: int, k: int) -> Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(m)).bfloat16()


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_unpack_is_the_inverse_of_pack(n: int, k: int) -> None:
    weight = some_weight(n, k)
    packed = pl.pack(weight)
    assert packed.shape == (n * k,) and packed.is_contiguous()
    assert torch.equal(pl.unpack(packed, n, k), weight)


def test_the_reference_is_a_linear_layer() -> None:
    weight, x = some_weight(80, 288), some_rows(7, 288)
    expected = torch.nn.functional.linear(x.float(), weight.float()).bfloat16()
    torch.testing.assert_close(pl.packed_linear_reference(x, pl.pack(weight)), expected)


@levels
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_kernel_computes_what_the_reference_does(n: int, k: int, at: Level) -> None:
    packed = pl.pack(some_weight(n, k))
    for rows in ROWS:
        x = some_rows(rows, k)
        with lowered(at):
            made = pl.packed_linear(x, packed)
        # Both round one float32 sum to bfloat16; the order of the sums may move a value across one rounding step.
        torch.testing.assert_close(made, pl.packed_linear_reference(x, packed), atol=4e-3, rtol=1e-2)


@levels
def test_a_row_does_not_depend_on_its_company(at: Level) -> None:
    packed, x = pl.pack(some_weight(128, 768)), some_rows(200, 768)
    with lowered(at):
        together = pl.packed_linear(x, packed)
        for index in (0, 15, 47, 48, 150, 199):
            assert torch.equal(pl.packed_linear(x[index : index + 1], packed)[0], together[index])


@needs_kernel
def test_a_level_that_the_machine_lacks_is_refused() -> None:
    with lowered(Level.AVX2):
        assert level() == Level.AVX2
        with pytest.raises(ValueError, match="this machine runs AVX2, not AVX512"), lowered(Level.AVX512):
            pass
    assert level() > Level.NONE


@needs_kernel
def test_rows_in_any_arrangement() -> None:
    packed, x = pl.pack(some_weight(48, 256)), some_rows(12, 256)
    expected = pl.packed_linear(x, packed)
    assert torch.equal(pl.packed_linear(x.view(3, 4, 256), packed), expected.view(3, 4, 48))
    assert torch.equal(pl.packed_linear(x.T.contiguous().T, packed), expected)  # columns adjacent in memory
    assert pl.packed_linear(x[:0], packed).shape == (0, 48)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(32, 64),
        torch.zeros(24, 64).bfloat16(),
        torch.zeros(32, 48).bfloat16(),
        torch.zeros(4, 4, 32).bfloat16(),
    ],
    ids=["float32", "outputs not of 16", "inputs not of 32", "three axes"],
)
def test_other_weights_are_left_alone(weight: Tensor) -> None:
    assert not pl.packable(weight)


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "no kernel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_vllm_layers_give_the_same_with_and_without_it(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, single_rank: None
) -> None:
    """The layers LlamaGen is made of, through vLLM's own loading hook."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    from panoserve.models import layers

    if not native:
        monkeypatch.setattr(layers, "packable", lambda weight: False)
    kinds = {
        "wqkv": QKVParallelLinear(64, 32, 2, bias=False, params_dtype=dtype),
        "wo": RowParallelLinear(64, 64, bias=False, params_dtype=dtype),
        "w13": MergedColumnParallelLinear(64, [96, 96], bias=False, params_dtype=dtype),
        "head": ParallelLMHead(256, 64, params_dtype=dtype),
    }
    model = torch.nn.ModuleDict(kinds)
    layers.pack_weights_after_loading(model)
    x = some_rows(10, 64).to(dtype)
    for layer in model.values():
        weight = some_weight(*layer.weight.shape).to(dtype)
        layer.weight.data.copy_(weight)
        layer.quant_method.process_weights_after_loading(layer)
        assert hasattr(layer, "packed") == (native and dtype == torch.bfloat16 and pl.available())
        expected = torch.nn.functional.linear(x.float(), weight.float())
        torch.testing.assert_close(layer.quant_method.apply(layer, x).float(), expected, atol=1e-2, rtol=1e-2)


@pytest.fixture
def single_rank(tmp_path: Path) -> Iterator[None]:
    """vLLM's parallel state for layers outside an engine: one rank; the session's engine may have made it already."""
    set_environment()
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    there = parallel_state.model_parallel_is_initialized()
    with set_current_vllm_config(VllmConfig()):
        if not there:
            parallel_state.init_distributed_environment(1, 0, f"file://{tmp_path / 'store'}", 0, backend="gloo")
            parallel_state.initialize_model_parallel(1)
        yield
        if not there:
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()
