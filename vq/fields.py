"""Activations that are computed strip by strip: what `decode_tiled` is made of.

A *field* is one activation of the decoder over the whole canvas, [1, C, H, W], of which any *span* (a range of columns,
or of rows: `dim` 3 or 2) can be had. A `Stored` field is a tensor; every other field computes its span from spans of
the fields it reads, asking for as many more positions on either side as its convolutions reach, and for none beyond the
canvas, where convolutions see zeros as they do in a whole decode. In a picture all around (`around`) left and right
edge are joined: positions of `dim` 3 beyond one edge are those behind the other. Normalisation comes in as an `Affine`:
the statistics belong to the whole canvas and have been measured, over all strips, before.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoserve.kernels.conv3x3 import conv3x3
from panoserve.vq.layers import ResBlock, Upsample


class Affine:
    """GroupNorm with known statistics, followed by swish: x * scale + shift per channel, float32 inside."""

    def __init__(self, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> None:
        """mean and variance of every channel's group, float64 [C]."""
        scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
        self.scale = scale.float()
        self.shift = (norm.bias.double() - mean * scale).float()
        self.zeros, self.ones = torch.zeros_like(self.scale), torch.ones_like(self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        # A batch norm of mean 0 and variance 1 is the one fused operation that takes half precision and float32 scales.
        return F.silu(F.batch_norm(x, self.zeros, self.ones, self.scale, self.shift, eps=0.0), inplace=True)


class Moments:
    """Mean and variance of every channel of a field, gathered strip by strip and combined in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0  # float64 [C]
        self.squares: Tensor | float = 0.0  # float64 [C], sum of squared deviations from the mean

    def add(self, strip: Tensor) -> None:
        """Take in a strip [1, C, H, W] (Chan's rule)."""
        count = strip.numel() // strip.shape[1]
        mean, squares = _channel_moments(strip)
        delta = mean.double() - self.mean
        total = self.count + count
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares.double() + delta.square() * (self.count * count / total)
        self.count = total

    def affine(self, norm: nn.GroupNorm) -> Affine:
        """What `norm` does to the field whose moments these are."""
        assert isinstance(self.mean, Tensor) and isinstance(self.squares, Tensor), "no strip was added"
        means = self.mean.view(norm.num_groups, -1)
        mean = means.mean(dim=1, keepdim=True)
        variance = (self.squares.view_as(means) / self.count + (means - mean).square()).mean(dim=1, keepdim=True)
        return Affine(norm, mean.expand_as(means).flatten(), variance.expand_as(means).flatten())


def _channel_moments(strip: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of every channel of a strip, float32 [C].

    In float32 by two passes with torch's accurate sums (relative error about 1e-7). In half precision by a kernel that
    is twice as fast and errs by about 1e-4, far less than the values themselves are rounded.
    """
    if strip.dtype != torch.float32:
        unused = torch.zeros(strip.shape[1], device=strip.device)
        mean, variance = torch.batch_norm_update_stats(strip, unused, unused.clone(), 0.0)
        return mean, variance * (strip.numel() // strip.shape[1])
    rows = strip.permute(0, 2, 3, 1).reshape(-1, strip.shape[1])
    mean = rows.mean(dim=0)
    return mean, (rows - mean).square_().sum(dim=0)


class Field(Protocol):
    """One activation over the whole canvas. `work` is multiply-adds per position of `dim`, recomputation included."""

    dim: int
    around: bool
    channels: int
    size: tuple[int, int]  # H, W
    work: float

    def span(self, start: int, stop: int) -> Tensor:
        """Positions start..stop of `dim`: [1, C, H, stop - start], or [1, C, stop - start, W] where dim is 2.

        Both may lie beyond the canvas where its edges are joined (`endless`).
        """

    def reads(self) -> list[Field]:
        """The fields that `span` reads."""


def length(field: Field) -> int:
    return field.size[field.dim - 2]


def endless(field: Field) -> bool:
    """Whether the cut dimension has no edges."""
    return field.around and field.dim == 3


def _convolution_work(conv: nn.Conv2d, field: Field) -> float:
    across = field.size[3 - field.dim]
    return float(conv.weight.numel() * across)


def _reach(field: Field, start: int, stop: int) -> tuple[int, int]:
    """start..stop and one more position on either side, within the canvas if it has edges."""
    if endless(field):
        return start - 1, stop + 1
    return max(start - 1, 0), min(stop + 1, length(field))


def _convolve(conv: nn.Conv2d, x: Tensor, field: Field, start: int, stop: int) -> Tensor:
    """conv of x, which covers _reach(start, stop), for the positions start..stop; zeros stand beyond the edges."""
    along_columns = field.dim == 3
    before, after = (0, 0) if endless(field) else (int(start == 0), int(stop == length(field)))
    if before or after:
        x = F.pad(x, (before, after, 0, 0) if along_columns else (0, 0, before, after))
    assert conv.bias is not None
    joined = field.around and not along_columns
    return conv3x3(x, conv.weight, conv.bias, padding=(1, 0) if along_columns else (0, 1), around=joined)


class Stored:
    """A field that is held in memory."""

    work = 0.0

    def __init__(self, values: Tensor, dim: int, around: bool = False) -> None:
        self.values = values
        self.dim, self.around = dim, around
        self.channels = values.shape[1]
        self.size = (values.shape[2], values.shape[3])

    def span(self, start: int, stop: int) -> Tensor:
        if start >= 0 and stop <= length(self):
            return self.values.narrow(self.dim, start, stop - start)
        positions = torch.arange(start, stop, device=self.values.device) % length(self)
        return self.values.index_select(self.dim, positions)

    def reads(self) -> list[Field]:
        return []


class Grown:
    """`Upsample` of another field."""

    def __init__(self, source: Field, upsample: Upsample) -> None:
        self.source, self.conv = source, upsample.conv
        self.dim, self.around, self.channels = source.dim, source.around, upsample.conv.out_channels
        self.size = (2 * source.size[0], 2 * source.size[1])
        self.work = _convolution_work(self.conv, self) + source.work / 2

    def span(self, start: int, stop: int) -> Tensor:
        first, last = _reach(self, start, stop)
        x = self.source.span(first // 2, (last + 1) // 2)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest").narrow(self.dim, first % 2, last - first)
        return _convolve(self.conv, x, self, start, stop)

    def reads(self) -> list[Field]:
        return [self.source]


class Half:
    """The first half of a ResBlock: norm1, swish, conv1."""

    def __init__(self, source: Field, block: ResBlock, norm1: Affine | None) -> None:
        self.source, self.conv, self.norm1 = source, block.conv1, norm1
        self.dim, self.around = source.dim, source.around
        self.channels, self.size = block.conv1.out_channels, source.size
        self.work = _convolution_work(self.conv, self) + source.work

    def span(self, start: int, stop: int) -> Tensor:
        return self.apply(self.source.span(*_reach(self, start, stop)), start, stop)

    def apply(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The span, given the source's span `_reach(start, stop)`."""
        assert self.norm1 is not None, "the statistics of the source are not known yet"
        return _convolve(self.conv, self.norm1(x), self, start, stop)

    def reads(self) -> list[Field]:
        return [self.source]


class Block:
    """A whole ResBlock. `half` is its first half, stored or not; where it is not, it is computed on the way."""

    def __init__(self, source: Field, half: Field, block: ResBlock, norm2: Affine | None) -> None:
        self.source, self.half, self.block, self.norm2 = source, half, block, norm2
        self.dim, self.around, self.channels, self.size = half.dim, half.around, half.channels, half.size
        self.work = _convolution_work(block.conv2, self) + (source.work if isinstance(half, Stored) else half.work)
        if block.nin_shortcut is not None:
            self.work += _convolution_work(block.nin_shortcut, self)

    def span(self, start: int, stop: int) -> Tensor:
        assert self.norm2 is not None, "the statistics of the first half are not known yet"
        first, last = _reach(self, start, stop)
        if isinstance(self.half, Half):
            outer = _reach(self, first, last)
            x = self.source.span(*outer)
            h = self.half.apply(x, first, last)
            x = x.narrow(self.dim, start - outer[0], stop - start)
        else:
            x = self.source.span(start, stop)
            h = self.half.span(first, last)
        return _convolve(self.block.conv2, self.norm2(h), self, start, stop).add_(self.block.shortcut(x))

    def reads(self) -> list[Field]:
        return [self.source, self.half] if isinstance(self.half, Stored) else [self.source]


class Picture:
    """The last convolution: norm_out, swish, conv_out."""

    def __init__(self, source: Field, conv: nn.Conv2d, norm: Affine | None) -> None:
        self.source, self.conv, self.norm = source, conv, norm
        self.dim, self.around, self.channels, self.size = source.dim, source.around, conv.out_channels, source.size
        self.work = _convolution_work(conv, self) + source.work

    def span(self, start: int, stop: int) -> Tensor:
        assert self.norm is not None, "the statistics of the source are not known yet"
        return _convolve(self.conv, self.norm(self.source.span(*_reach(self, start, stop))), self, start, stop)

    def reads(self) -> list[Field]:
        return [self.source]
