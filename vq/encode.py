"""Encode a picture of any size in windows as large as the pictures that the models were trained on.

The encoder's normalisation and attention see everything at once, so the codes of a wide picture encoded whole are not
those that its crops would have, and a transformer has only ever seen codes of crops. Windows also bound the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from panoserve.vq.model import VQModel


@torch.inference_mode()
def encode_windows(model: VQModel, image: Tensor, side: int) -> Tensor:
    """Codes int64 [h, w] of a picture [3, H, W] in [-1, 1], from half-overlapping windows of side x side codes.

    A picture that is smaller is its own window; else a code is taken from the window whose middle is nearest. Raises
    InvalidRequestError unless H and W are multiples of the downsample factor.
    """
    step = model.config.downsample
    rows, columns = image.shape[1] // step, image.shape[2] // step
    if max(rows, columns) <= side:
        return model.encode(image[None])[0].cpu()
    codes = torch.empty(rows, columns, dtype=torch.long)
    for top, bottom, first_row, end_row in _windows(rows, side):
        for left, right, first, end in _windows(columns, side):
            window = image[None, :, top * step : bottom * step, left * step : right * step]
            kept = model.encode(window)[0, first_row - top : end_row - top, first - left : end - left]
            codes[first_row:end_row, first:end] = kept
    return codes


def _windows(length: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows over `length` codes: (start, stop) of each and (first, end) of the codes that are taken from it."""
    starts = [*range(0, max(length - side, 0), max(side // 2, 1)), max(length - side, 0)]
    ends = [(start + following + side) // 2 for start, following in pairwise(starts)]
    for start, first, end in zip(starts, [0, *ends], [*ends, length], strict=True):
        yield start, min(start + side, length), first, end
