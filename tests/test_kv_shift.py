"""move_kv against its specification, and against vLLM's operator applied to keys rotated for the destination."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from vllm_cache import HEADS, empty_layer, move_of, write_by_vllm

from panoserve.errors import EnvironmentProblem
from panoserve.kernels.kv_layout import CPU_TILINGS, KVLayout, flash_layout, kv_layout
from panoserve.kernels.kv_shift import KVMove, move_kv, move_kv_reference, stack_layers
from panoserve.kernels.rope import RopeSpec
from panoserve.models.reference import rope_rows, rope_table, rotate

GRID = 16
# A key is rounded to its dtype once when cached and once more when moved; relative to keys of size about 1 to 4.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def at(positions: Tensor, head_dim: int, keys: Tensor) -> Tensor:
    """`keys` [n, heads, hd or more], not yet rotated, as the model caches them at grid `positions`; padding kept."""
    rows = rope_rows(rope_table(GRID, head_dim), positions)
    turned = keys.clone()
    turned[..., :head_dim] = rotate(keys[..., :head_dim], rows)
    return turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("head_dim", "padded", "block_size"),
    # The published head size; the 3B's, padded so that vLLM's CPU kernels take it; 128 (7B) in small blocks.
    [(64, 64, 128), (100, 112, 32), (100, 128, 128), (128, 128, 32)],
)
def test_moved_keys_are_those_of_the_destination(
    dtype: torch.dtype, head_dim: int, padded: int, block_size: int
) -> None:
    """One overlap row of 5 codes moves 11 columns left and 2 rows up; vLLM's own cache of it must be what we get."""
    prefix = 3
    source_positions = torch.arange(5) + 5 * GRID + 11
    destination_positions = torch.arange(5) + 3 * GRID
    source, destination = prefix + source_positions, 2 * block_size * 4 + prefix + destination_positions
    keys, values = torch.randn(2, 5, HEADS, padded)

    layers = [empty_layer(16, block_size, padded, dtype) for _ in range(2)]
    expected = [layer.clone() for layer in layers]
    for layer, goal in zip(layers, expected, strict=True):
        for cache in (layer, goal):
            write_by_vllm(cache, source, at(source_positions, head_dim, keys).to(dtype), values.to(dtype))
        write_by_vllm(goal, destination, at(destination_positions, head_dim, keys).to(dtype), values.to(dtype))

    move = move_of((source.tolist(), destination.tolist(), -2, -11))
    move_kv(layers, kv_layout(layers[0]), move, RopeSpec(head_dim))
    for layer, goal in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer, goal, rtol=0, atol=TOLERANCE[dtype])
        assert layer.ne(0).sum() == goal.ne(0).sum()  # nothing else was touched


def random_move(slots: int, generator: torch.Generator) -> KVMove:
    """Two lanes with a shift of their own, a run that crosses a block, and a prefix that does not turn."""
    shuffled = torch.randperm(slots - 20, generator=generator)[:14] + 20
    return move_of(
        (range(0, 10), range(10, 20), 0, -12),
        (shuffled[:4].tolist(), shuffled[4:8].tolist(), -3, 7),
        (shuffled[8:11].tolist(), shuffled[11:14].tolist(), 0, 0),
    )


LAYOUTS = [KVLayout(name, 32, 64, keys, values, halves=True) for name, keys, values in CPU_TILINGS]


@pytest.mark.parametrize("layout", [*LAYOUTS, flash_layout(32, 64)], ids=lambda layout: layout.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_fast_path_agrees_with_the_specification(layout: KVLayout, dtype: torch.dtype) -> None:
    """Random caches in every layout, also those of other machines; layers cut from one buffer, as vLLM does it."""
    generator = torch.Generator().manual_seed(1)
    buffer = torch.randn(2, 4, HEADS, 32, 128, generator=generator).to(dtype)
    fast, slow = list(buffer.clone()), list(buffer.clone())
    move = random_move(4 * 32, generator)
    move_kv(fast, layout, move, RopeSpec(64))
    move_kv_reference(slow, layout, move, RopeSpec(64))
    for one, other in zip(fast, slow, strict=True):
        # A number that lies between two that can be stored may be rounded either way.
        steps = {torch.float32: (1e-6, 1e-6), torch.bfloat16: (1.6e-2, 1e-6), torch.float8_e4m3fn: (0.13, 2e-3)}
        relative, absolute = steps[dtype]
        torch.testing.assert_close(one.float(), other.float(), rtol=relative, atol=absolute)
        assert not torch.equal(one.float(), buffer[0].float())


def test_turned_keys_stay_within_fp8() -> None:
    layer = torch.full((2, HEADS, 32, 128), 440.0).to(torch.float8_e4m3fn)
    move_kv([layer], LAYOUTS[0], move_of((range(4), range(8, 12), 1, 1)), RopeSpec(64))
    assert layer.float().isfinite().all() and layer.float().abs().max() == 448


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unshifted_moves_copy_bits(dtype: torch.dtype) -> None:
    layer = torch.randn(2, HEADS, 32, 128).to(dtype)
    layer[0] *= -0.0  # signed zeros, as condition rows have: they must keep their sign
    layout = kv_layout(layer)
    before = layout.read(layer, torch.arange(20))
    move_kv([layer], layout, move_of((range(20), range(40, 60), 0, 0)), RopeSpec(64))
    for was, now in zip(before, layout.read(layer, torch.arange(40, 60)), strict=True):
        assert torch.equal(was.view(torch.uint8), now.view(torch.uint8))


def test_unshifted_slots_beside_shifted_ones_keep_their_values() -> None:
    layer = torch.randn(2, HEADS, 32, 128)
    layout = kv_layout(layer)
    before, _ = layout.read(layer, torch.arange(4))
    move_kv([layer], layout, move_of((range(4), range(8, 12), 0, 0), ([5], [6], 1, 1)), RopeSpec(64))
    assert torch.equal(layout.read(layer, torch.arange(8, 12))[0], before)


def test_layers_of_one_buffer_are_one_view_and_others_are_not() -> None:
    buffer = torch.zeros(3, 2, HEADS, 32, 128)
    assert [stack.shape[0] for stack in stack_layers(list(buffer))] == [3]
    assert [stack.shape[0] for stack in stack_layers([buffer[2], buffer[0], buffer[1]])] == [1, 1, 1]
    assert [stack.shape[0] for stack in stack_layers([buffer[0], torch.zeros(2, HEADS, 32, 128)])] == [1, 1]
    assert stack_layers(list(buffer))[0].data_ptr() == buffer.data_ptr()


def test_moves_that_cannot_be_done_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="both source and destination"):
        move_of(([1, 2], [2, 3], 0, -1))
    with pytest.raises(ValueError, match="writes one slot twice"):
        move_of(([1, 2], [5, 5], 0, -1))
    ones = torch.ones(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="must all be"):
        KVMove(ones, ones, ones, ones[:1])


def test_a_cache_of_another_shape_is_refused() -> None:
    layer = torch.zeros(2, HEADS, 32, 128)
    other = flash_layout(32, 80)
    with pytest.raises(EnvironmentProblem, match=r"expects \[blocks, heads, 32, 160\]"):
        move_kv([layer], other, move_of(([1], [2], 0, 0)), RopeSpec(80))


def test_frequencies_are_upstreams() -> None:
    """facts.md 1.3: for head_dim 64, row 1, column 2: pairs 0, 1, 16, 17."""
    turns = RopeSpec(64).turns(torch.tensor([1]), torch.tensor([2]))[0]
    assert turns[0].real.item() == pytest.approx(0.5403023, abs=1e-6)
    assert turns[0].imag.item() == pytest.approx(0.8414710, abs=1e-6)
    assert turns[1].real.item() == pytest.approx(0.8460091, abs=1e-6)
    assert turns[16].real.item() == pytest.approx(-0.4161468, abs=1e-6)
    assert turns[17].real.item() == pytest.approx(0.4314629, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        RopeSpec(66)


TRITON = """
import torch
from panoserve.kernels.kv_layout import CPU_TILINGS, KVLayout, flash_layout
from panoserve.kernels.kv_shift import move_kv_reference
from panoserve.kernels.kv_shift_triton import move_stack
from panoserve.kernels.rope import RopeSpec
from vllm_cache import move_of

torch.manual_seed(0)
rope = RopeSpec(12)  # padded to 16
move = move_of(([1, 2, 18], [40, 41, 63], -2, 3), ([33], [5], 0, 0))
layouts = [KVLayout(name, 32, 16, k, v, halves=True) for name, k, v in CPU_TILINGS] + [flash_layout(32, 16)]
for layout in layouts:
    for dtype in (torch.float32, torch.float16):
        stack = torch.randn(2, 2, 2, 32, 32).to(dtype)
        expected = stack.clone()
        move_kv_reference(list(expected), layout, move, rope)
        move_stack(stack, layout, move, rope.turns(move.rows, move.columns))
        torch.testing.assert_close(stack, expected, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)
        move_stack(stack, layout, move_of(([5], [6], 0, 0)), None)
        keys, _ = layout.read(stack, torch.tensor([5, 6]))
        assert torch.equal(keys[:, 0], keys[:, 1])
print("agrees in", len(layouts), "layouts")
"""


def test_triton_kernel_agrees_with_the_specification() -> None:
    """Under Triton's interpreter, in a process of its own: the switch must be set before Triton is first imported."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", TRITON],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "agrees in 4 layouts"
