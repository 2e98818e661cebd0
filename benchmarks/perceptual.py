"""ST-LPIPS: a learned distance between pictures that tolerates small shifts (Ghildyal and Liu, ECCV 2022).

The weights of the AlexNet variant come from the package stlpips-pytorch (BSD 2-clause), whose own code would need
torchvision. **It is not the original LPIPS**, and its values must not be compared with published LPIPS values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoserve.benchmarks.packages import file_of

EPSILON = 1e-10


class Scaling(nn.Module):
    """From [-1, 1] to what the network was trained on; the numbers come with the weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class Blur(nn.Module):
    """Halves the resolution behind a fixed low-pass filter, so that a shift by a pixel changes little."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", torch.outer(line, line).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=len(self.filt))


class Head(nn.Module):
    """Weighs the squared differences of one layer's channels; `model.1` is its weight's published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).mean((1, 2, 3))


class STLPIPS(nn.Module):
    """Shift-tolerant LPIPS over AlexNet. Pictures are [B, 3, H, W] in [0, 1]; attribute names are the weights'."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[list[nn.Module]] = [
            [nn.Conv2d(3, 64, 11, padding=2), Blur(64), nn.ReLU()],
            [nn.MaxPool2d(3, 1), Blur(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
            [nn.MaxPool2d(3, 1), Blur(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        ]
        self.net, place = nn.Module(), 0
        for number, slice_layers in enumerate(layers, start=1):
            part = nn.Sequential()
            for layer in slice_layers:  # numbered through all slices, as published
                part.add_module(str(place), layer)
                place += 1
            self.net.add_module(f"slice{number}", part)
        self.scaling_layer = Scaling()
        for index, channels in enumerate((64, 192, 384, 256, 256)):
            self.add_module(f"lin{index}", Head(channels))

    @classmethod
    def load(cls) -> STLPIPS:
        """With the package's weights. Raises EnvironmentProblem if it is not installed."""
        model = cls()
        path = file_of("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth")
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model.eval().requires_grad_(False)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Activations after each slice, of unit length over their channels."""
        x = self.scaling_layer(2 * pictures - 1)
        activations = []
        for part in self.net.children():
            x = part(x)
            activations.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPSILON))
        return activations

    def between(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """Distances [B] of pictures given by their features."""
        heads = [getattr(self, f"lin{index}") for index in range(len(one))]
        return sum(
            (head((a - b).square()) for head, a, b in zip(heads, one, other, strict=True)), torch.zeros(len(one[0]))
        )

    @torch.inference_mode()
    def pairs(self, pictures: Tensor) -> Tensor:
        """Distances of all pairs i < j of pictures [B, 3, H, W], in that order."""
        features = self.features(pictures)
        first, second = torch.triu_indices(len(pictures), len(pictures), offset=1)
        return torch.cat(
            [
                self.between([f[i : i + 1] for f in features], [f[j : j + 1] for f in features])
                for i, j in zip(first.tolist(), second.tolist(), strict=True)
            ]
        )
