"""Move cached keys and values from slot to slot of vLLM's paged cache, turning the keys by a shift on the grid.

For every layer and every i: value[destination[i]] = value[source[i]] and key[destination[i]] = key[source[i]] turned
by (rows[i], columns[i]). This is what context `reuse` does instead of running given codes through the model again.
`move_kv_reference` is the specification; `move_kv` does the same quickly on a CPU and, through Triton, on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from panoserve.kernels.kv_layout import KVLayout, gather, scatter
from panoserve.kernels.rope import RopeSpec, turn


@dataclass(frozen=True, slots=True)
class KVMove:
    """A batch of moves, of one lane or of many: slot source[i] goes to slot destination[i].

    source, destination: int64 [n]; rows, columns: int32 [n], the shift of each (0, 0 for condition rows). No slot may
    be written twice, nor be both a source and a destination: a chain of copies takes one batch per link. Checked
    here, because on a GPU the order of the copies is undefined.
    """

    source: Tensor
    destination: Tensor
    rows: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(part.shape) for part in (self.source, self.destination, self.rows, self.columns)}
        if len(shapes) != 1 or self.source.dim() != 1:
            raise ValueError(f"source, destination, rows and columns must all be [n], got {sorted(shapes)}")
        written = self.destination.tolist()
        if len(set(written)) != len(written):
            raise ValueError("a KV move writes one slot twice; destinations must be distinct")
        if chained := set(written).intersection(self.source.tolist()):
            raise ValueError(
                f"slots {sorted(chained)[:5]} are both source and destination of one KV move; "
                "copy a chain in as many batches as it has links"
            )

    def __len__(self) -> int:
        return len(self.source)


def move_kv(layers: Sequence[Tensor], layout: KVLayout, move: KVMove, rope: RopeSpec) -> None:
    """Carry out `move` in every layer's cache, in place.

    layers: cache tensors [num_blocks, heads, block_size, 2 * head_dim] as vLLM hands them to `register_kv_caches`.
    A move whose shifts are all zero copies bits; other keys are turned in float32 and rounded once. Raises
    EnvironmentProblem for a tensor that does not have this layout.
    """
    if len(move) == 0:
        return
    for layer in layers:
        layout.check(layer)
    turns = rope.turns(move.rows, move.columns) if bool(move.rows.any() or move.columns.any()) else None
    for stack in stack_layers(layers):
        if stack.device.type == "cpu":
            _move_stack(stack, layout, move, turns)
        else:
            from panoserve.kernels.kv_shift_triton import move_stack

            move_stack(stack, layout, move, turns)


def _move_stack(stack: Tensor, layout: KVLayout, move: KVMove, turns: Tensor | None) -> None:
    key_tiles, value_tiles = layout.parts(stack)
    keys = gather(key_tiles, layout.keys, move.source, layout.block_size)
    values = gather(value_tiles, layout.values, move.source, layout.block_size)
    if turns is not None:
        keys = turn(keys, turns)
    scatter(key_tiles, layout.keys, move.destination, layout.block_size, keys)
    scatter(value_tiles, layout.values, move.destination, layout.block_size, values)


def stack_layers(layers: Sequence[Tensor]) -> list[Tensor]:
    """The layers' caches as one view [L, ...] if vLLM cut them evenly out of one buffer (0.32 does), else each alone.

    One indexing operation over all layers costs a tenth of the overhead of one operation per layer.
    """
    first = layers[0]
    offsets = [layer.storage_offset() for layer in layers]
    step = offsets[1] - offsets[0] if len(layers) > 1 else 0
    even = all(
        layer.shape == first.shape
        and layer.stride() == first.stride()
        and layer.dtype == first.dtype
        and layer.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and offset == offsets[0] + index * step
        for index, (layer, offset) in enumerate(zip(layers, offsets, strict=True))
    )
    if even and step >= 0:
        return [first.as_strided((len(layers), *first.shape), (step, *first.stride()), offsets[0])]
    return [layer[None] for layer in layers]


def move_kv_reference(layers: Sequence[Tensor], layout: KVLayout, move: KVMove, rope: RopeSpec) -> None:
    """The specification of `move_kv`, one slot and one pair at a time."""
    half = rope.head_dim // 2
    for layer in layers:
        keys, values = layout.read(layer, move.source)
        turned = keys.clone()
        for i in range(len(move)):
            for pair in range(half):
                shift = int(move.rows[i] if pair < half // 2 else move.columns[i])
                angle = shift * rope.theta ** (-2 * (pair % (half // 2)) / half)
                even, odd = keys[i, :, 2 * pair].float(), keys[i, :, 2 * pair + 1].float()
                turned[i, :, 2 * pair] = (even * math.cos(angle) - odd * math.sin(angle)).to(keys.dtype)
                turned[i, :, 2 * pair + 1] = (odd * math.cos(angle) + even * math.sin(angle)).to(keys.dtype)
        layout.write(layer, move.destination, turned, values)
