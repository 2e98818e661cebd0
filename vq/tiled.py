"""Decode a canvas of any size in bounded memory, with the result of a whole decode.

Cutting a canvas into tiles and decoding each would change the picture: GroupNorm takes its statistics over the whole
canvas, and attention sees all of it. Here every normalisation is measured over all strips of the canvas first
(vq/fields.py) and applied afterwards, and attention, which sits at the latent resolution only, is computed whole in
memory linear in the number of cells (vq/attention.py).

Measuring needs the activation that is measured. It is kept if that fits into `memory` bytes; if not, each later pass
computes it again from the last activation that is kept. With VQ-16 in float32, keeping everything takes 1 KiB a pixel
(so 3 GiB are enough for 512 x 5120 pixels), half of it costs 1.2 times the arithmetic outside the latent part, a
quarter 3.4 times, and next to nothing 9.4 times.

The memory bound, beyond the weights and the returned picture (12 bytes a pixel), with s bytes per element:

- latent part: 10 * width * s bytes per latent cell, width being the coarsest level's (VQ-16 float32: 20 KiB a cell);
- kept: at most `memory` bytes of activations;
- strips: at most 8 tensors (9 in a picture all around) of one strip at a time, of STRIP_BYTES each, or of MIN_STRIP
  positions across the canvas's shorter side where that is more;
- in float32 on a CPU: the weights of 3x3 convolutions four times, and at most 2 MiB a thread (kernels/conv3x3.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from panoserve.vq.fields import Affine, Block, Field, Grown, Half, Moments, Picture, Stored, endless, length
from panoserve.vq.layers import AttnBlock, Level, ResBlock, convolve
from panoserve.vq.model import Decoder, VQModel

DEFAULT_MEMORY = 3 << 30
STRIP_BYTES = 16 << 20
MIN_STRIP = 16  # positions; a strip's results are written one strip late, so this must exceed what a ResBlock reaches
WHOLE_COPIES = 5  # activations of the finest level alive at once in a whole decode, with some slack

Progress = Callable[[float], None]


@torch.inference_mode()
def decode_tiled(
    model: VQModel,
    codes: Tensor,
    *,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
    around: bool = False,
) -> Tensor:
    """Codes [B, h, w] -> pictures float32 [B, 3, H, W] in about [-1, 1], on the model's device.

    Equal to `model.decode(codes, around)` within 1e-4 in float32; around: the right edge meets the left one. `memory`
    bounds, in bytes, the activations kept between passes (see the module's docstring); a canvas whose whole decode fits
    into it is decoded whole, with as many others as `decodes_at_once` says. `progress` is called with the fraction
    done, rising to 1.0.
    """
    batch, rows, columns = codes.shape
    side = model.config.downsample
    weight = model.post_quant_conv.weight
    pictures = torch.empty(batch, 3, rows * side, columns * side, device=weight.device)
    whole = whole_decode_bytes(model, rows, columns) <= memory
    step = decodes_at_once(model, rows, columns, memory)
    for i in range(0, batch, step):
        report = _share(progress, i // step, -(-batch // step))
        canvases = codes[i : i + step].to(weight.device)
        if whole:
            pictures[i : i + step] = model.decode(canvases, around)
        else:
            _decode_in_strips(model, canvases, pictures[i : i + 1], memory, report, around)
        report(1.0)
    return pictures


def decodes_at_once(model: VQModel, rows: int, columns: int, memory: int) -> int:
    """Canvases of rows x columns codes that are decoded as one batch: on a GPU as many as fit into `memory`.

    On a CPU one: it keeps all cores busy, and more of them are no faster (docs/log.md).
    """
    if model.post_quant_conv.weight.device.type == "cpu":
        return 1
    return max(1, memory // whole_decode_bytes(model, rows, columns))


def whole_decode_bytes(model: VQModel, rows: int, columns: int) -> int:
    """About how much memory a whole decode of rows x columns codes takes, beyond weights and picture."""
    widest = max(model.config.widths[:2])  # the finest level starts at the width of the one before
    itemsize = model.post_quant_conv.weight.itemsize
    return WHOLE_COPIES * widest * itemsize * rows * columns * model.config.downsample**2


def _share(progress: Progress | None, i: int, count: int) -> Progress:
    """Progress of the i-th of `count` equal parts."""
    return lambda fraction: progress((i + fraction) / count) if progress else None


def _decode_in_strips(
    model: VQModel, codes: Tensor, picture: Tensor, memory: int, progress: Progress, around: bool
) -> None:
    """Codes [1, h, w] into picture [1, 3, H, W]. Strips cut the longer side."""
    decoder = model.decoder
    _, rows, columns = codes.shape
    dim = 3 if columns >= rows else 2
    blocks = [*decoder.mid, *cast(Level, decoder.conv_blocks[0]).within()]
    head = [model.post_quant_conv, decoder.conv_in, *blocks]
    head_work = _latent_work(head, rows * columns)
    plan = _Plan()
    sketch = torch.empty(
        1, model.config.widths[-1], rows, columns, dtype=model.post_quant_conv.weight.dtype, device="meta"
    )
    _run_levels(decoder, Stored(sketch, dim, around), picture, memory, plan)

    x = model.lookup(codes).contiguous(memory_format=torch.channels_last)
    x = convolve(decoder.conv_in, model.post_quant_conv(x), around)
    for block in blocks:
        x = block(x, around)
    strips = _Strips(lambda work: progress((head_work + work) / (head_work + plan.work)))
    _run_levels(decoder, Stored(x, dim, around), picture, memory, strips)


class _Passes(Protocol):
    def run(self, field: Field, target: Tensor | None, norm: nn.GroupNorm | None) -> Affine | None:
        """Compute all of `field`: into `target`, if given, and to measure it for `norm`, if given."""


class _Plan:
    """Computes nothing, adds up the work."""

    def __init__(self) -> None:
        self.work = 0.0

    def run(self, field: Field, target: Tensor | None, norm: nn.GroupNorm | None) -> Affine | None:
        self.work += field.work * length(field)
        return None


class _Strips:
    """Computes a field strip by strip and reports the work done."""

    def __init__(self, report: Progress) -> None:
        self.report = report
        self.work = 0.0
        self.report(0.0)

    def run(self, field: Field, target: Tensor | None, norm: nn.GroupNorm | None) -> Affine | None:
        moments = Moments()
        # The target may be what the next strip still reads, so write one strip late; where the edges are joined, the
        # last strip reads what the first one stands for.
        late: list[tuple[Tensor, Tensor]] = []
        kept = 1 if endless(field) else 0
        for start, stop in _cuts(field):
            strip = field.span(start, stop)
            if norm is not None:
                moments.add(strip)
            for place, values in late[kept:]:
                place.copy_(values)
            if target is not None:
                late = [*late[:kept], (target.narrow(field.dim, start, stop - start), strip)]
            self.work += field.work * (stop - start)
            self.report(self.work)
        for place, values in late:
            place.copy_(values)
        return None if norm is None else moments.affine(norm)


def _cuts(field: Field) -> list[tuple[int, int]]:
    """Where to cut a field: (start, stop) of every strip."""
    total = length(field)
    position_bytes = 4 * field.channels * field.size[3 - field.dim]
    step = max(MIN_STRIP, STRIP_BYTES // position_bytes)
    return [(start, min(start + step, total)) for start in range(0, total, step)]


def _run_levels(decoder: Decoder, field: Field, picture: Tensor, memory: int, passes: _Passes) -> None:
    """Everything after the latent resolution: from the coarsest level's activation into `picture`."""

    def settle(field: Field, norm: nn.GroupNorm | None, following: int = 0) -> tuple[Field, Affine | None]:
        """Keep the field if that leaves room for `following` channels, and measure it for the norm after it, if any."""
        target = _room(field, memory, like, following)
        if target is None and norm is None:
            return field, None
        affine = passes.run(field, target, norm)
        return (field if target is None else Stored(target, field.dim, field.around)), affine

    like = field.span(0, 1)
    levels = [cast(Level, level) for level in decoder.conv_blocks]
    affine = passes.run(field, None, decoder.norm_out) if len(levels) == 1 else None
    for coarse, fine in pairwise(levels):
        blocks = [cast(ResBlock, block) for block in fine.res]
        norms = [block.norm1 for block in blocks[1:]] + [decoder.norm_out if fine is levels[-1] else None]
        narrower = blocks[0].conv1.out_channels if blocks[0].nin_shortcut is not None else 0
        assert coarse.upsample is not None
        field, affine = settle(Grown(field, coarse.upsample), blocks[0].norm1, narrower)
        for block, norm in zip(blocks, norms, strict=True):
            half, affine = settle(Half(field, block, affine), block.norm2)
            field, affine = settle(Block(field, half, block, affine), norm)
    passes.run(Picture(field, decoder.conv_out, affine), picture, None)


def _room(field: Field, memory: int, like: Tensor, following: int) -> Tensor | None:
    """Where to keep a field: over a kept one that nothing needs afterwards, else in new memory, else nowhere (None).

    New memory is refused where it would leave no room for as many as `following` channels of what comes next.
    """
    if isinstance(field, Block):
        for read in reversed(field.reads()):
            if isinstance(read, Stored) and (read.channels, read.size) == (field.channels, field.size):
                return read.values
    if _kept_bytes(field) + (field.channels + following) * math.prod(field.size) * like.itemsize > memory:
        return None
    shape = (1, field.channels, *field.size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _kept_bytes(field: Field) -> int:
    """Memory of all tensors that computing the field needs."""
    own = field.values.nbytes if isinstance(field, Stored) else 0
    return own + sum(_kept_bytes(read) for read in field.reads())


def _latent_work(head: list[nn.Module], cells: int) -> float:
    """Multiply-adds of the layers at the latent resolution: convolutions, and attention of every cell to every cell."""
    modules = [module for block in head for module in block.modules()]
    convolutions = sum(module.weight.numel() for module in modules if isinstance(module, nn.Conv2d))
    attention = sum(2 * module.q.out_channels * cells for module in modules if isinstance(module, AttnBlock))
    return float(cells * (convolutions + attention))
