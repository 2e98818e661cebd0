"""Redraw a part of a picture: codes outside a mask are given, codes inside are drawn, pixels outside stay as they are.

No plan of its own kind: a canvas with given codes (`PanoramaRequest.given`) is drawn around them whatever their shape.
Each drawn code follows those above it and to its left; given codes to its right and below it are seen by the rows after
it only (docs/redirection.md). So where everything outside one rectangle is to be drawn, extend.py does it better.

A code is drawn if any of its pixels is more transparent than not. What stands there is hidden from the tokenizer, whose
encoder looks around: it sees the surrounding colours, spread into the hole. What is drawn meets the picture as in
extend.py: what differs across the edge, averaged along it, is added to the drawn side and fades out inwards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from panoserve.configs.grid import Grid
from panoserve.configs.model import ModelConfig
from panoserve.configs.wire import UNKNOWN
from panoserve.errors import InvalidRequestError
from panoserve.serve.extend import FADE, Extension, Sides, check_extension
from panoserve.serve.request import PanoramaRequest
from panoserve.serve.work import Codes, Decoded, Encode, Made, Pixels, Round, Work, draw_work

if TYPE_CHECKING:
    from PIL.Image import Image

    from panoserve.serve.engine import Engine

Opacity = NDArray[np.uint8]  # [H, W]: 255 keeps a pixel, 0 draws it anew, between them the two are mixed
Cells = NDArray[np.bool_]  # [h, w]: one for each code
Colours = NDArray[np.float32]  # [h, w, 3]

HALF = 128  # a pixel of less opacity has its code drawn


def opacity_of(picture: Image, mask: Image | None = None) -> Opacity | None:
    """How much of each pixel is kept: what the picture and the mask both keep; None for an opaque picture by itself.

    Raises InvalidRequestError if they are not of one size.
    """
    if mask is not None and mask.size != picture.size:
        raise InvalidRequestError(
            f"the mask is {mask.width}x{mask.height} pixels, but the picture is {picture.width}x{picture.height}; they "
            "must be of one size",
            "mask",
        )
    shown = np.array(picture.convert("RGBA").getchannel("A")) if picture.has_transparency_data else None
    if mask is None:
        return shown
    cover = np.array(mask.convert("RGBA").getchannel("A"))
    return cover if shown is None else np.minimum(cover, shown)


def masked_work(
    pixels: Pixels, opacity: Opacity, request: PanoramaRequest, config: ModelConfig, context: str = "reuse"
) -> Work:
    """The work of drawing what is transparent, for a request without a size. Raises InvalidRequestError."""
    if not (opacity < HALF).any():
        raise InvalidRequestError(
            "the mask is nowhere transparent, so there is nothing to draw; make transparent what is to be redrawn",
            "mask",
        )
    box = kept_box(opacity)
    if box is not None:
        left, top, right, bottom = box
        height, width = opacity.shape
        sides = Sides(left=left, right=width - right, up=top, down=height - bottom)
        try:
            resolved = check_extension((right - left, bottom - top), sides, request, config, context)
        except InvalidRequestError as error:
            param = "mask" if error.param is None or error.param in Sides.__dataclass_fields__ else error.param
            message = f"what the mask keeps is one rectangle, around which is drawn: {error}"
            raise InvalidRequestError(message, param) from None
        return Extension(pixels[top:bottom, left:right], sides, resolved, config.grid)
    resolved = check_redrawing((pixels.shape[1], pixels.shape[0]), request, config, context)
    return Redrawing(pixels, opacity, resolved, config.grid)


def kept_box(opacity: Opacity) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of what is kept, if that is one rectangle and all else is fully transparent."""
    rows, columns = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
    if not len(rows):
        return None
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    whole = (opacity[top:bottom, left:right] == 255).all()
    return (left, top, right, bottom) if whole else None


def check_redrawing(
    size: tuple[int, int], request: PanoramaRequest, config: ModelConfig, context: str = "reuse"
) -> PanoramaRequest:
    """The resolved request for a picture of `size` (width, height), its own from now on. Raises InvalidRequestError."""
    for name in ("width", "height", "given"):
        if getattr(request, name) is not None:
            raise InvalidRequestError(f"{name} cannot be set when a picture is redrawn; leave it out", name)
    if request.loop:
        raise InvalidRequestError("a redrawn picture cannot be a loop; leave loop out", "loop")
    step = config.grid.downsample
    width, height = (-(-pixels // step) * step for pixels in size)
    resolved = replace(request, width=width, height=height).resolve(config, context)
    return replace(resolved, width=size[0], height=size[1])


def redraw_picture(
    engine: Engine, picture: Image, mask: Image | None, request: PanoramaRequest, progress: bool = True
) -> Made:
    """Draw what `request` says where the picture or `mask`, of the same size, is transparent (mode RGBA).

    Raises InvalidRequestError.
    """
    opacity = opacity_of(picture, mask)
    if opacity is None:
        opacity = np.full((picture.height, picture.width), 255, np.uint8)
    pixels = np.array(picture.convert("RGB"))
    work = masked_work(pixels, opacity, request, engine.config, request.context or engine.context)
    return draw_work(engine, work, progress)


class Redrawing(Work):
    """A picture with parts of it drawn anew, in one round."""

    def __init__(self, pixels: Pixels, opacity: Opacity, request: PanoramaRequest, grid: Grid) -> None:
        """request: what check_redrawing made of it."""
        self.pixels, self.opacity, self.request, self.grid = pixels, opacity, request, grid
        height, width = self.padded_size
        self.canvases = [grid.canvas_of(width, height)]

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) in pixels, of whole codes."""
        step = self.grid.downsample
        height, width = (-(-side // step) * step for side in self.opacity.shape)
        return height, width

    def begin(self, encode: Encode) -> Round:
        return RedrawingRound(self, encode)


class RedrawingRound(Round):
    def __init__(self, work: Redrawing, encode: Encode) -> None:
        self.work = work
        height, width = work.padded_size
        beyond = ((0, height - work.pixels.shape[0]), (0, width - work.pixels.shape[1]))
        pixels: Pixels = np.pad(work.pixels, (*beyond, (0, 0)), mode="edge")
        there = np.pad(work.opacity, beyond, mode="edge") >= HALF
        self.step = work.grid.downsample
        self.cells: Cells = ~whole_cells(there, self.step)  # to be drawn
        self.colours, known = cell_colours(pixels, there, self.step)
        around = enlarged(spread(self.colours, known), self.step)
        codes: Codes = encode(np.where(there[..., None], pixels, around.round().astype(np.uint8)))
        given = np.where(self.cells, UNKNOWN, codes)
        self.requests = {
            "picture": replace(work.request, given=torch.from_numpy(given), width=width, height=height),
        }

    def preview(self, decoded: Decoded) -> Pixels:
        return self._mixed(decoded["picture"].astype(np.float32))

    def finish(self, decoded: Decoded) -> Round | Pixels:
        drawn = decoded["picture"]
        means, _ = cell_colours(drawn, np.ones(drawn.shape[:2], dtype=bool), self.step)
        reach = FADE * self.work.grid.side
        depth = enlarged(depths(self.cells, reach + 1)[..., None], self.step)
        weight = np.clip(1 - depth / np.float32(reach), 0, 1) ** 2
        corrected = drawn + weight * enlarged(edge_differences(self.colours, means, self.cells), self.step)
        return self._mixed(corrected.astype(np.float32, copy=False))

    def _mixed(self, drawn: Colours) -> Pixels:
        """Kept pixels as they are, the others from `drawn`, which may reach beyond the picture."""
        height, width = self.work.opacity.shape
        share = self.work.opacity[..., None] / np.float32(255)
        mixed = self.work.pixels * share + drawn[:height, :width] * (1 - share)
        return mixed.clip(0, 255).round().astype(np.uint8)


def whole_cells(there: NDArray[np.bool_], step: int) -> Cells:
    """Which codes have all their pixels, of a plane [H, W] of whole codes."""
    height, width = there.shape
    whole: Cells = np.logical_and.reduce(there.reshape(height // step, step, width // step, step), axis=(1, 3))
    return whole


def cell_colours(pixels: Pixels, there: NDArray[np.bool_], step: int) -> tuple[Colours, Cells]:
    """Mean colour of the pixels of each code that are there, and which codes have any."""
    height, width = there.shape
    shape = height // step, step, width // step, step
    counts = there.reshape(shape).sum(axis=(1, 3), dtype=np.float32)
    sums = (pixels * there[..., None]).reshape(*shape, 3).sum(axis=(1, 3), dtype=np.float32)
    return sums / np.maximum(counts, 1)[..., None], counts > 0


def edge_differences(colours: Colours, drawn: Colours, cells: Cells) -> Colours:
    """How the picture's colours differ from the drawn ones across the edge: [h, w, 3].

    At a drawn cell beside kept ones, how far it is from what continues those: their colour, and a slope as far as
    picture and drawn side agree on one, so that neither a sky's gradient nor a horizon is taken for a seam. This is
    averaged along the edge, and spread from there.
    """
    rows, columns = cells.shape
    kept = np.pad(~cells, 2)
    inside = np.pad(cells, 2)
    picture = np.pad(colours, ((2, 2), (2, 2), (0, 0)))
    anew = np.pad(drawn, ((2, 2), (2, 2), (0, 0)))
    beside = np.zeros(cells.shape, dtype=np.float32)
    total = np.zeros_like(colours)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):  # where the kept cell is

        def at(plane: NDArray, steps: int, down: int = down, right: int = right) -> NDArray:
            """Each cell's neighbour `steps` cells towards the picture."""
            top, left = 2 + steps * down, 2 + steps * right
            return plane[top : top + rows, left : left + columns]

        there = at(kept, 1) & cells
        outer = np.where((at(kept, 2) & there)[..., None], at(picture, 1) - at(picture, 2), 0)
        inner = np.where((at(inside, -1) & there)[..., None], at(anew, -1) - drawn, 0)
        slope = np.where(outer * inner > 0, np.sign(inner) * np.minimum(abs(outer), abs(inner)), 0)
        beside += there
        total += there[..., None] * (at(picture, 1) + slope - drawn)
    edge = beside > 0
    difference = total / np.maximum(beside, 1)[..., None]
    near = neighbours(np.concatenate([difference, edge[..., None]], axis=2).astype(np.float32))
    averaged = near[..., :3] / np.maximum(near[..., 3:], 1)
    return spread(averaged, edge)


def neighbours(values: Colours) -> Colours:
    """Sums of values [h, w, c] over each cell and the eight around it."""
    rows, columns = values.shape[:2]
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[row : row + rows, column : column + columns] for row in range(3) for column in range(3)]
    return np.sum(shifted, axis=0, dtype=np.float32)


def depths(cells: Cells, most: float) -> NDArray[np.float32]:
    """How far the middle of each cell lies inside what is drawn, from the edge on, in cells and up to `most`."""
    depth = np.full(cells.shape, most, dtype=np.float32)
    near = ~cells
    depth[near] = -0.5
    for ring in range(int(np.ceil(most))):
        grown = neighbours(near[..., None].astype(np.float32))[..., 0] > 0
        depth[grown & ~near] = ring + 0.5
        near = grown
    return depth


def spread(values: Colours, known: Cells) -> Colours:
    """Known values as they are, and the others continued from them: means over ever larger squares, and back.

    All 0 if none is known.
    """
    plane = torch.from_numpy(np.ascontiguousarray(values)).movedim(2, 0)[None]
    filled: Colours = _spread(plane, torch.from_numpy(known).float()[None, None])[0].movedim(0, 2).numpy()
    return filled


def _spread(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """values [1, C, h, w], known [1, 1, h, w] of 0 and 1."""
    if bool(known.all()) or values.shape[-1] * values.shape[-2] == 1:
        return values * known
    share = functional.avg_pool2d(known, 2, ceil_mode=True)
    means = functional.avg_pool2d(values * known, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = _spread(means, (share > 0).float())
    around = functional.interpolate(coarse, size=values.shape[-2:], mode="bilinear")
    return torch.where(known > 0, values, around)


def enlarged(cells: Colours, step: int) -> Colours:
    """Values of cells [h, w, 3] -> of pixels [h step, w step, 3], linear between the cells' middles."""
    plane = torch.from_numpy(np.ascontiguousarray(cells)).movedim(2, 0)[None]
    pixels: Colours = functional.interpolate(plane, scale_factor=step, mode="bilinear")[0].movedim(0, 2).numpy()
    return pixels
