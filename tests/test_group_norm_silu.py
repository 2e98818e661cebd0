"""The compiled normalisation and swish of a VQ decoder against their readable twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoserve.kernels.group_norm_silu import MAX_CHANNELS, group_norm_silu, group_norm_silu_reference
from panoserve.kernels.native import native
from panoserve.vq.layers import ResBlock

needs_compiled = pytest.mark.skipif(native() is None, reason="needs a C compiler at installation")
EPSILON = 1e-6
# (channels, groups, height, width): the embedded decoder's finest level, VQ-16's, ones that fill no vector
SHAPES = [(16, 1, 48, 56), (128, 32, 33, 20), (512, 32, 4, 5), (24, 3, 5, 7), (6, 2, 1, 1), (1, 1, 3, 300)]


def inputs(
    channels: int, groups: int, height: int, width: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    """x [1, C, H, W] channels_last, whose channels have unlike means and sizes, weight and bias, all in `dtype`."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(1, channels, height, width, generator=generator) * torch.linspace(0.5, 3, channels)[:, None, None]
    x += torch.linspace(-2, 4, channels)[:, None, None]
    weight, bias = torch.randn(2, channels, generator=generator)
    return x.to(dtype).contiguous(memory_format=torch.channels_last), weight.to(dtype), bias.to(dtype)


@needs_compiled
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_nearer_to_the_exact_result_than_its_twin(shape: tuple[int, int, int, int]) -> None:
    x, weight, bias = inputs(*shape)
    exact = group_norm_silu_reference(x.double(), weight.double(), bias.double(), shape[1], EPSILON)
    with torch.no_grad():
        made = group_norm_silu(x, weight, bias, shape[1], EPSILON)
    twin = group_norm_silu_reference(x, weight, bias, shape[1], EPSILON)
    assert made.stride() == twin.stride() and made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), exact, rtol=4.1e-3, atol=1e-5)  # half a unit of bfloat16's last place
    assert (made.double() - exact).abs().mean() <= (twin.double() - exact).abs().mean()


@needs_compiled
@pytest.mark.parametrize("shape", SHAPES)
def test_float32(shape: tuple[int, int, int, int]) -> None:
    x, weight, bias = inputs(*shape, torch.float32)
    exact = group_norm_silu_reference(x.double(), weight.double(), bias.double(), shape[1], EPSILON)
    with torch.no_grad():
        made = group_norm_silu(x, weight, bias, shape[1], EPSILON)
    assert made.is_contiguous(memory_format=torch.channels_last) and made.dtype == torch.float32
    torch.testing.assert_close(made.double(), exact, rtol=2e-6, atol=3e-6)


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_result_may_take_the_place_of_what_is_spent(dtype: torch.dtype) -> None:
    x, weight, bias = inputs(*SHAPES[0], dtype)
    with torch.no_grad():
        expected = group_norm_silu(x, weight, bias, SHAPES[0][1], EPSILON)
        made = group_norm_silu(x, weight, bias, SHAPES[0][1], EPSILON, spent=True)
    assert made.data_ptr() == x.data_ptr() and torch.equal(made, expected)


@needs_compiled
def test_threads_do_not_change_it() -> None:
    x, weight, bias = inputs(*SHAPES[1])
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with torch.no_grad():
                made.append(group_norm_silu(x, weight, bias, SHAPES[1][1], EPSILON))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


@pytest.mark.parametrize("case", ["float64", "two pictures", "channels first", "gradient", "too wide"])
def test_the_twin_runs_where_the_kernel_cannot(case: str) -> None:
    x, weight, bias = inputs(16, 1, 6, 5)
    if case == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    elif case == "two pictures":
        x = torch.cat([x, 2 * x + 1])
    elif case == "channels first":
        x = x.contiguous()
    elif case == "too wide":
        x, weight, bias = inputs(MAX_CHANNELS + 1, 1, 2, 2)
    with torch.set_grad_enabled(case == "gradient"):
        assert torch.equal(
            group_norm_silu(x, weight, bias, 1, EPSILON), group_norm_silu_reference(x, weight, bias, 1, EPSILON)
        )


def test_blocks_still_learn() -> None:
    block = ResBlock(8, 8, 2).bfloat16()
    block(torch.randn(1, 8, 4, 4).bfloat16()).sum().backward()
    assert block.norm1.weight.grad is not None and block.norm1.weight.grad.abs().sum() > 0
