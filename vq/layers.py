"""The blocks that encoder and decoder are made of (facts.md 2.1). Attribute names are the published key names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoserve.kernels.conv3x3 import conv3x3
from panoserve.kernels.group_norm_silu import group_norm_silu
from panoserve.vq.attention import attend

NORM_EPS = 1e-6


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def new_conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def convolve(conv: nn.Conv2d, x: Tensor, around: bool, plus: Tensor | None = None) -> Tensor:
    """A 3x3 convolution with zeros beyond all edges or, `around`, with left and right edge joined; `plus` is added."""
    assert conv.bias is not None
    return conv3x3(x, conv.weight, conv.bias, around=around, plus=plus)


def normed_swish(norm: nn.GroupNorm, x: Tensor, spent: bool = False) -> Tensor:
    """What stands before a convolution: x [B, C, H, W] normalised, then swish; in its place where it is `spent`."""
    if torch.is_grad_enabled():
        return F.silu(norm(x))  # training has norms of its own (train/tokenizer.py)
    return group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps, spent=spent)


class ResBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = new_conv3x3(inputs, outputs)
        self.norm2 = group_norm(outputs, groups)
        self.conv2 = new_conv3x3(outputs, outputs)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, kernel_size=1) if inputs != outputs else None

    def forward(self, x: Tensor, around: bool = False) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H, W]; `around` as in `convolve`."""
        h = convolve(self.conv1, normed_swish(self.norm1, x), around)
        return convolve(self.conv2, normed_swish(self.norm2, h, spent=True), around, plus=self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.nin_shortcut is None else self.nin_shortcut(x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, plus the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, around: bool = False) -> Tensor:
        """x [B, C, H, W] -> [B, C, H, W]; memory is linear in H * W. No edge matters here, so `around` does not."""
        h = self.norm(x)
        q, k, v = (proj(h).flatten(2).transpose(1, 2) for proj in (self.q, self.k, self.v))  # [B, H*W, C]
        mixed = attend(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)


class Downsample(nn.Module):
    """Halve both sides: one zero column on the right and one zero row below, then a stride-2 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides by repetition, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = new_conv3x3(channels, channels)

    def forward(self, x: Tensor, around: bool = False) -> Tensor:
        assert self.conv.bias is not None
        return conv3x3(x, self.conv.weight, self.conv.bias, around=around, doubled=True)


class Level(nn.Module):
    """The blocks of one resolution. `attn` is empty except on the coarsest level, where one follows each ResBlock."""

    def __init__(
        self,
        inputs: int,
        width: int,
        groups: int,
        *,
        blocks: int,
        attention: bool,
        resample: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(inputs if i == 0 else width, width, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(width, groups) for _ in range(blocks if attention else 0))
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = resample if isinstance(resample, Upsample) else None

    def within(self) -> list[nn.Module]:
        """The blocks that keep the resolution, in the order of execution."""
        ordered: list[nn.Module] = []
        for i, res in enumerate(self.res):
            ordered += [res, self.attn[i]] if len(self.attn) else [res]
        return ordered

    def forward(self, x: Tensor, around: bool = False) -> Tensor:
        for block in self.within():
            x = block(x, around)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x, around)
