"""The compiled passes of a transformer block against their readable twins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoserve.kernels import block
from panoserve.kernels.native import native
from panoserve.models.reference import rope_rows, rope_table, rotate

needs_compiled = pytest.mark.skipif(native() is None, reason="needs a C compiler at installation")
# (tokens, streams, heads, head size, rotated part of it): a published shape, odd ones, a padded head (GPT-3B)
SHAPES = [(5, 2, 12, 64, 64), (40, 2, 12, 64, 64), (1, 1, 2, 32, 32), (3, 2, 1, 8, 8), (7, 2, 4, 128, 100)]


def inputs(tokens: int, streams: int, heads: int, head_dim: int, rotated: int) -> tuple[Tensor, Tensor]:
    """qkv [N, S, 3 heads, hd] float32, and the complex rope rows of positions that include a condition row."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, streams, 3 * heads, head_dim, generator=generator)
    positions = torch.randint(-1, 64, (tokens,), generator=generator)
    positions[0] = -1
    return qkv, rope_rows(torch.view_as_complex(rope_table(8, rotated, 10_000.0)), positions)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_twin_is_the_reference_models_rotation(shape: tuple[int, int, int, int, int]) -> None:
    qkv, rope = inputs(*shape)
    heads, rotated = shape[2], shape[4]
    rows = torch.view_as_real(rope)
    q, k, v = block.rope_split_reference(qkv, rope)
    for made, part in ((q, qkv[:, :, :heads]), (k, qkv[:, :, heads : 2 * heads])):
        turned = rotate(part[..., :rotated].transpose(0, 1), rows).transpose(
            0, 1
        )  # rotate wants [..., tokens, heads, hd]
        torch.testing.assert_close(made.view_as(part)[..., :rotated], turned)
        assert torch.equal(made.view_as(part)[..., rotated:], part[..., rotated:])
    assert torch.equal(v, qkv[:, :, 2 * heads :].flatten(1))


@needs_compiled
@pytest.mark.parametrize("shape", SHAPES)
def test_rope_and_split(shape: tuple[int, int, int, int, int]) -> None:
    qkv, rope = inputs(*shape)
    qkv = qkv.bfloat16()
    made_all = block.rope_split(qkv, rope)
    assert shape[3] != shape[4] or not made_all[0][0].any()  # a condition row's query is zero (facts.md 1.3)
    for made, expected in zip(made_all, block.rope_split_reference(qkv, rope), strict=True):
        assert made.shape == expected.shape and made.is_contiguous()
        # Both round one float32 value; a fused multiply-add may move it across one rounding step.
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=8e-3)
        assert (made != expected).float().mean() < 1e-3


@needs_compiled
@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (10, 2048), (80, 768)])
def test_silu_and_mul(rows: int, columns: int) -> None:
    x = (4 * torch.randn(rows, 2 * columns, generator=torch.Generator().manual_seed(rows))).bfloat16()
    made, expected = block.silu_and_mul(x), block.silu_and_mul_reference(x)
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=8e-3)
    assert (made != expected).float().mean() < 1e-3


@needs_compiled
def test_silu_of_every_bfloat16() -> None:
    """All finite values, as gates of 1: the exponential neither overflows nor loses digits anywhere."""
    gates = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    gates = gates[gates.isfinite()]
    made = block.silu_and_mul(torch.cat([gates, torch.ones_like(gates)])[None])[0]
    expected = (gates.double() * torch.sigmoid(gates.double())).float()
    normal = expected.abs() > 1e-30  # below, both are zero for every purpose
    torch.testing.assert_close(made.float()[normal], expected[normal], rtol=8e-3, atol=0)
    assert made[~normal].abs().max() < 1e-29


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_run_the_twin(dtype: torch.dtype) -> None:
    qkv, rope = inputs(*SHAPES[0])
    qkv = qkv.to(dtype)
    for made, expected in zip(block.rope_split(qkv, rope), block.rope_split_reference(qkv, rope), strict=True):
        assert torch.equal(made, expected)
    x = torch.randn(3, 8).to(dtype)
    assert torch.equal(block.silu_and_mul(x), block.silu_and_mul_reference(x))
