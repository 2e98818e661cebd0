"""All layers in one call against the same kernels one by one; and that the engine takes it where it can."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from panoserve.kernels import block
from panoserve.kernels import packed_linear as packed
from panoserve.kernels.decode_layers import DecodeLayers, Lanes, Layer, Sizes, decode_layers_reference
from panoserve.kernels.native import Level, level, lowered, native
from panoserve.models.reference import rope_rows, rope_table

needs_compiled = pytest.mark.skipif(native() is None, reason="needs a C compiler at installation")
BLOCKS, BLOCK_SIZE = 6, 32


@needs_compiled
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (10, 768), (7, 200), (80, 256)])
def test_the_norms(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    x, residual = (torch.randn(rows, columns, generator=generator).bfloat16() for _ in range(2))
    weight = (torch.rand(columns, generator=generator) + 0.5).bfloat16()
    torch.testing.assert_close(
        block.rms_norm(x, weight, 1e-5), block.rms_norm_reference(x, weight, 1e-5), atol=1e-3, rtol=1.6e-2
    )
    total = x + residual
    normed, kept = block.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    assert torch.equal(kept, total)
    assert torch.equal(normed, block.rms_norm(total, weight, 1e-5))


def made_up(sizes: Sizes, count: int) -> list[Layer]:
    generator = torch.Generator().manual_seed(count)
    width = sizes.heads * sizes.head_dim

    def matrix(outputs: int, inputs: int) -> Tensor:
        return packed.pack((torch.randn(outputs, inputs, generator=generator) / inputs**0.5).bfloat16())

    def norm() -> Tensor:
        return (torch.rand(sizes.dim, generator=generator) + 0.5).bfloat16()

    return [
        Layer(
            norm(), matrix(3 * width, sizes.dim), matrix(sizes.dim, width),
            norm(), matrix(2 * sizes.inner, sizes.dim), matrix(sizes.dim, sizes.inner),
            torch.randn(
                BLOCKS, sizes.streams * sizes.heads, BLOCK_SIZE, 2 * sizes.head_dim, generator=generator
            ).bfloat16(),
        )
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("at", [one for one in Level if Level.NONE < one <= level()], ids=lambda at: at.name)
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(streams=2, heads=4, head_dim=64, dim=256, inner=768, layout="vec", scale=0.125, epsilon=1e-5),
        Sizes(streams=1, heads=2, head_dim=32, dim=96, inner=32, layout="vec", scale=0.2, epsilon=1e-6),
    ],
    ids=["two-streams", "one-stream"],
)
def test_one_call_is_the_kernels_one_by_one(sizes: Sizes, at: Level) -> None:
    """Three lanes, of which one has two new tokens."""
    if at == Level.AMX:
        sizes = replace(sizes, layout="amx")
    layers = made_up(sizes, 3)
    caches = [layer.cache.clone() for layer in layers]
    tables = torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.int32)
    lengths = torch.tensor([40, 7, 33], dtype=torch.int32)
    lanes = Lanes(torch.tensor([39, 69, 70, 160]), torch.tensor([0, 1, 3, 4], dtype=torch.int32), lengths, tables)
    rope = rope_rows(torch.view_as_complex(rope_table(8, sizes.head_dim, 10_000.0)), torch.tensor([3, 5, 6, -1]))
    x = torch.randn(4 * sizes.streams, sizes.dim, generator=torch.Generator().manual_seed(1)).bfloat16()
    with lowered(at):
        expected = decode_layers_reference(layers, sizes, x, rope, lanes)
    written = [layer.cache.clone() for layer in layers]
    for layer, cache in zip(layers, caches, strict=True):
        layer.cache.copy_(cache)
    fused = DecodeLayers(layers, sizes)
    with lowered(at):
        made = fused(x.clone(), rope, lanes)
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one, other) and one.isfinite().all()
    for layer, cache in zip(layers, written, strict=True):
        assert torch.equal(layer.cache, cache)
    assert min(fused.take_seconds()) > 0 and fused.take_seconds() == (0, 0)


@needs_compiled
def test_structures_of_another_size_are_refused() -> None:
    compiled = native()
    assert compiled is not None
    with pytest.raises(ValueError, match=r"native\.h"):
        compiled.decode_layers(b"", b"short")
