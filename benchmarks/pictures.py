"""What the quality benchmark measures of drawn panoramas: one value, or one pair of sums, a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panoserve.benchmarks.intervals import Estimate, bootstrap, bootstrap_mean
from panoserve.benchmarks.packages import imported
from panoserve.benchmarks.perceptual import STLPIPS
from panoserve.benchmarks.seams import Steps, seam_steps
from panoserve.redirect.plan import Plan


def windows(image: NDArray[np.uint8], side: int) -> Tensor:
    """The windows of `side` pixels that stand side by side in a picture [side, W, 3]: [k, 3, side, side] in [0, 1]."""
    pixels = torch.from_numpy(image[:, : image.shape[1] // side * side].copy()).permute(2, 0, 1).float() / 255
    return pixels.unfold(2, side, side).permute(2, 0, 1, 3).contiguous()


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity [k] of pictures [k, 3, H, W] in [0, 1] (torchmetrics: Gaussian window of 11, sigma 1.5)."""
    metric = imported("torchmetrics.functional.image").structural_similarity_index_measure
    values: Tensor = metric(one, other, data_range=1.0, reduction="none")
    return values.reshape(len(one))


@dataclass(frozen=True, slots=True)
class Measured:
    """What one picture shows."""

    ssim: float  # of windows that stand side by side, in the mean
    st_lpips: float  # of all pairs of windows, in the mean
    steps: Steps  # across borders between crops, across other borders between codes, and inside codes


def measure_picture(image: NDArray[np.uint8], plan: Plan, side: int, distance: STLPIPS) -> Measured:
    """Measure one horizontal panorama [side, W, 3] at least two crops wide."""
    crops = windows(image, side)
    return Measured(
        ssim=float(ssim(crops[:-1], crops[1:]).mean()),
        st_lpips=float(distance.pairs(crops).mean()),
        steps=seam_steps(image, plan, 1),
    )


def summarize(measured: list[Measured]) -> dict[str, Estimate]:
    """Every figure over all pictures; intervals over prompts. Ratios are of sums over pictures, not means of ratios."""

    def total(chosen: NDArray[np.int64]) -> Steps:
        return sum((measured[index].steps for index in chosen), Steps())

    return {
        "st_lpips": bootstrap_mean(np.array([m.st_lpips for m in measured])),
        "ssim": bootstrap_mean(np.array([m.ssim for m in measured])),
        "border_variation": bootstrap(lambda chosen: total(chosen).crops.mean / 255, len(measured)),
        "seam_ratio": bootstrap(lambda chosen: total(chosen).ratio, len(measured)),
        "code_seam_ratio": bootstrap(lambda chosen: total(chosen).ratio_to_codes, len(measured)),
    }


def chosen_windows(image: NDArray[np.uint8], side: int, seed: int, count: int = 2) -> Tensor:
    """As many of a picture's windows as every other picture gives, so that sets of crops are of equal size."""
    crops = windows(image, side)
    order = np.random.default_rng(seed).permutation(len(crops))[:count]
    return crops[torch.from_numpy(np.sort(order))]
