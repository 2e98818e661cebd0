"""The Winograd convolution of a VQ decoder against its readable twin."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panoserve.kernels import conv3x3 as module
from panoserve.kernels.conv3x3 import MAX_CHANNELS, PLANES, RUN_NUMBERS, conv3x3, conv3x3_reference
from panoserve.kernels.native import Level, level, lowered
from panoserve.vq.layers import ResBlock

levels = pytest.mark.parametrize("at", [one for one in Level if Level.NONE < one <= level()], ids=lambda at: at.name)
needs_kernel = pytest.mark.skipif(level() < Level.AVX2, reason="needs AVX2 and a C compiler at installation")
# (inputs, outputs, height, width): one tile, broken tiles, one and several registers of outputs, VQ-16's widest
SHAPES = [(16, 16, 4, 4), (32, 16, 1, 2), (16, 48, 9, 13), (128, 64, 24, 31), (512, 512, 3, 5)]
FORMS: list[dict[str, Any]] = [
    {},
    {"around": True},
    {"doubled": True},
    {"around": True, "doubled": True},
    {"padding": (0, 1)},
    {"padding": (1, 0)},
    {"padding": (0, 1), "around": True},
]
# Of the sum of absolute products: float32's half unit is 6e-8, and the transforms of F(4x4, 3x3) lose a factor of some
# tens of it. The largest that was seen is 3e-6.
ERROR = 5e-6


def inputs(channels: int, outputs: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [1, C, H, W] channels_last, weight and bias."""
    generator = torch.Generator().manual_seed(channels + width)
    x = torch.randn(1, channels, height, width, generator=generator) + 0.5
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) * channels**-0.5
    return x.contiguous(memory_format=torch.channels_last), weight, torch.randn(outputs, generator=generator)


def check(made: Tensor, x: Tensor, weight: Tensor, bias: Tensor, **form: Any) -> None:
    exact = conv3x3_reference(x.double(), weight.double(), bias.double(), **form)
    size = conv3x3_reference(x.double().abs(), weight.double().abs(), bias.double().abs(), **form).max()
    assert made.shape == exact.shape and made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert (made - exact).abs().max() <= ERROR * size


@levels
@pytest.mark.parametrize(
    ("shape", "form"),
    [(shape, form) for shape in SHAPES for form in FORMS if "padding" not in form or min(shape[2:]) >= 3],
    ids=str,
)
def test_the_kernel_computes_what_the_reference_does(
    shape: tuple[int, int, int, int], form: dict[str, Any], at: Level
) -> None:
    x, weight, bias = inputs(*shape)
    with torch.no_grad(), lowered(at):
        made = conv3x3(x, weight, bias, **form)
    check(made, x, weight, bias, **form)


@levels
def test_parts_of_a_picture_and_what_is_added(at: Level) -> None:
    """A strip of a stored activation is narrower than its rows are apart."""
    x, weight, bias = inputs(32, 16, 10, 40)
    for part in (x.narrow(3, 5, 17), x.narrow(3, 5, 17).narrow(2, 3, 5)):
        plus = torch.randn(1, 16, *part.shape[2:]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), lowered(at):
            made = conv3x3(part, weight, bias, plus=plus)
            plain = conv3x3(part.contiguous(memory_format=torch.channels_last), weight, bias)
        assert torch.equal(made, plain + plus)


@needs_kernel
def test_neither_threads_nor_runs_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = inputs(64, 32, 30, 50)
    threads = torch.get_num_threads()
    made = []
    try:
        for count, numbers in ((1, RUN_NUMBERS), (2, RUN_NUMBERS), (2, 1)):
            torch.set_num_threads(count)
            monkeypatch.setattr(module, "RUN_NUMBERS", numbers)
            with torch.no_grad():
                made.append(conv3x3(x, weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@needs_kernel
@torch.no_grad()
def test_weights_that_change_are_packed_again_and_forgotten_with_their_owner() -> None:
    conv = nn.Conv2d(16, 16, 3).requires_grad_(False)
    x, _, _ = inputs(16, 16, 8, 8)
    known = len(module._packed)
    for _ in range(2):
        check(conv3x3(x, conv.weight, conv.bias), x, conv.weight, conv.bias)  # type: ignore[arg-type]
        conv.weight.mul_(-2)
    conv.weight.data = torch.randn(16, 16, 3, 3)
    check(conv3x3(x, conv.weight, conv.bias), x, conv.weight, conv.bias)  # type: ignore[arg-type]
    assert len(module._packed) == known + 1
    del conv
    gc.collect()
    assert len(module._packed) == known


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("channels", [32, 256, 2 * MAX_CHANNELS])
def test_scratch_is_bounded_and_threads_have_equal_shares(channels: int, threads: int) -> None:
    for tiles in (1, 7, 108, 100_000):
        run = module._tiles_in_a_run(tiles, channels, threads)
        assert run >= 1 and run * PLANES * channels <= max(RUN_NUMBERS, 12 * PLANES * channels)
        runs = -(-tiles // run)
        turns = -(-runs // threads)
        assert turns * run < tiles / threads + turns  # no thread works on more than its share, rounded up


CASES = [
    "float64", "bfloat16", "two pictures", "channels first", "some of the channels", "gradient", "odd width",
    "too wide", "larger", "trained", "made for inference", "autocast", "a sum in rows", "a sum of halves",
    "a smaller sum",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_twin_runs_where_the_kernel_cannot(case: str) -> None:
    x, weight, bias = inputs({"too wide": MAX_CHANNELS + 16, "odd width": 24}.get(case, 16), 16, 4, 5)
    plus = torch.ones(1, 16, 4, 5).contiguous(memory_format=torch.channels_last)
    if case in ("float64", "bfloat16"):
        x, weight, bias, plus = (one.to(getattr(torch, case)) for one in (x, weight, bias, plus))
    elif case == "two pictures":
        x = torch.cat([x, 2 * x + 1])
    elif case == "channels first":
        x = x.contiguous()
    elif case == "some of the channels":
        x = torch.cat([x, x], dim=1).contiguous(memory_format=torch.channels_last)[:, :16]
    elif case == "larger":
        weight, plus = torch.randn(16, 16, 5, 5), plus[:, :, 1:3, 1:4]
    elif case == "trained":
        weight.requires_grad_(True)
    elif case == "made for inference":
        with torch.inference_mode():
            weight = weight.clone()
    elif case == "a sum in rows":
        plus = plus.contiguous()
    elif case == "a sum of halves":
        plus = plus.bfloat16()
    elif case == "a smaller sum":
        plus = plus[:, :, :1]
    with torch.set_grad_enabled(case == "gradient"), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        made = conv3x3(x, weight, bias, plus=plus)
        assert torch.equal(made, conv3x3_reference(x, weight, bias, plus=plus))


def test_a_fused_step_of_training_is_seen() -> None:
    """It changes weights without a change of their version."""
    conv = nn.Conv2d(16, 16, 3)
    x, _, _ = inputs(16, 16, 8, 8)
    optimizer = torch.optim.Adam(conv.parameters(), lr=1.0, fused=True)
    with torch.no_grad():
        conv3x3(x, conv.weight, conv.bias)  # type: ignore[arg-type]
    conv(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        made = conv3x3(x, conv.weight, conv.bias)  # type: ignore[arg-type]
        expected = conv3x3_reference(x, conv.weight, conv.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-3)


def test_blocks_still_learn() -> None:
    block = ResBlock(16, 16, 2)
    block(torch.randn(1, 16, 4, 4)).sum().backward()
    assert block.conv1.weight.grad is not None and block.conv1.weight.grad.abs().sum() > 0
