"""Crop after crop: the order in which panoramas were drawn before the wavefront, on the same engine.

Each crop is a request of its own, whose left columns are given by the crop before; the panoramas of a batch advance
together. Only the order differs: the codes are those of context `recompute`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from panoserve.configs.wire import UNKNOWN
from panoserve.redirect.layout import crop_starts
from panoserve.serve.prompts import Part
from panoserve.serve.request import PanoramaRequest, PanoramaStats

if TYPE_CHECKING:
    from panoserve.serve.engine import Engine


@dataclass(frozen=True, slots=True)
class Drawn:
    """One panorama: its codes [g, W], and the counters of all of its crops together."""

    codes: Tensor
    stats: PanoramaStats


def draw_crops(engine: Engine, requests: Sequence[PanoramaRequest]) -> list[Drawn]:
    """Draw horizontal panoramas, all of the same width and stride, one crop after another."""
    grid = engine.config.grid
    [(columns, stride)] = {(request.width // grid.downsample, request.stride) for request in requests}  # type: ignore[operator]
    assert stride is not None
    canvases = torch.full((len(requests), grid.side, columns), UNKNOWN)
    totals = [PanoramaStats(0, 0, 0, 0, 0, 0.0) for _ in requests]
    for start in crop_starts(columns, grid.side, stride):
        windows = canvases[:, :, start : start + grid.side]
        part = Part(0, start, columns * grid.downsample, grid.crop_pixels)
        crops = [
            replace(request, width=grid.crop_pixels, given=window if start else None, part=part, context="recompute")
            for request, window in zip(requests, windows.clone(), strict=True)
        ]
        for index, crop in enumerate(engine.generate(crops, decode=False, progress=False)):
            windows[index] = crop.codes
            totals[index] = _sum(totals[index], crop.stats)
    return [Drawn(codes, stats) for codes, stats in zip(canvases, totals, strict=True)]


def _sum(one: PanoramaStats, two: PanoramaStats) -> PanoramaStats:
    return PanoramaStats(
        steps=one.steps + two.steps,
        drawn=one.drawn + two.drawn,
        forward_tokens=one.forward_tokens + two.forward_tokens,
        copied_slots=one.copied_slots + two.copied_slots,
        lanes=one.lanes + two.lanes,
        seconds=one.seconds + two.seconds,
    )
