"""Extend a picture: its codes are given, what is missing around it is drawn, its own pixels are kept.

A model draws in raster order, so it continues what is above and to the left. Hence

    right, down   continue the picture as a panorama continues itself
    left          is drawn to the right of the mirrored picture, and mirrored back
    up            sees nothing of the picture below it: it is given rows in the colours of the picture's upper edge,
                  above what was asked for, which what is drawn leads down from (UP_HINT_ROWS)

The sides are drawn first, at the height of the picture, which is where a model finds its way best; then what is above
and below all of that. Each side is a canvas of its own, whose codes meet the picture's edge exactly whatever the
picture's size, with as much of the picture as its first crop has room for. The colours that differ across the edge,
because the tokenizer loses some and because the model draws others, are brought together on the drawn side (docs/log.md
has the figures behind the constants).

Everything below happens in a *frame*: an array whose axis 0 runs from the picture outwards, across the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from panoserve.configs.grid import Grid
from panoserve.configs.model import ModelConfig
from panoserve.configs.wire import UNKNOWN
from panoserve.errors import InvalidRequestError
from panoserve.serve.request import MAX_SEED, Panorama, PanoramaRequest, check_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from panoserve.serve.engine import Engine

Pixels = NDArray[np.uint8]  # [H, W, 3]
Codes = NDArray[np.int64]  # [H, W]
Encode = Callable[[Pixels], Codes]

MAX_SIDE = 1 << 20  # pixels that may be added on one side
UP_HINT_ROWS = 2  # codes
FADE, UP_FADE = 0.25, 0.5  # of a crop: how far the correction of colours reaches into what is drawn
SMOOTHING, UP_SMOOTHING = 1, 8  # codes to either side: over how much of the edge it is averaged


@dataclass(frozen=True, slots=True)
class Sides:
    """Pixels to draw on each side of a picture. Raises InvalidRequestError."""

    left: int = 0
    right: int = 0
    up: int = 0
    down: int = 0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            check_whole(name, getattr(self, name), 0, MAX_SIDE)
        if not any(astuple(self)):
            raise InvalidRequestError("nothing to draw: left, right, up and down are all 0; give one of them", "right")


@dataclass(frozen=True, slots=True, eq=False)
class Extension:
    """An extended picture. `request` is resolved, its size the whole picture's; `drawings` are the sides' canvases."""

    image: Image
    request: PanoramaRequest
    drawings: dict[str, Panorama]

    @property
    def truncated(self) -> bool:
        """The prompt was longer than the text encoder takes."""
        return any(drawing.truncated for drawing in self.drawings.values())


def check_extension(
    size: tuple[int, int], sides: Sides, request: PanoramaRequest, config: ModelConfig, context: str = "reuse"
) -> PanoramaRequest:
    """The resolved request of an extension of a picture of `size` (width, height). Raises InvalidRequestError."""
    for name in ("width", "height", "prompts", "given"):
        if getattr(request, name) is not None:
            raise InvalidRequestError(f"{name} cannot be set when a picture is extended; leave it out", name)
    if request.loop:
        raise InvalidRequestError("an extended picture cannot be a loop; leave loop out", "loop")
    step, crop = config.grid.downsample, config.grid.crop_pixels
    if min(size) < step:
        raise InvalidRequestError(f"the picture is {size[0]}x{size[1]} pixels, but must be at least {step}x{step}")
    if sides.up > crop:
        raise InvalidRequestError(
            f"up is {sides.up} pixels, but at most one crop ({crop}) can be drawn above a picture, because nothing of "
            "the picture is seen from there",
            "up",
        )
    width, height = size[0] + sides.left + sides.right, size[1] + sides.up + sides.down
    if min(width, height) < crop:
        raise InvalidRequestError(
            f"the extended picture would be {width}x{height} pixels, but must be at least one crop, {crop}x{crop}; "
            "extend it further, or enlarge the picture first"
        )
    resolved = replace(request, width=crop, height=crop).resolve(config, context)
    return replace(resolved, width=width, height=height)


def extend_picture(
    engine: Engine, picture: Image, sides: Sides, request: PanoramaRequest, progress: bool = True
) -> Extension:
    """Draw around `picture` what `request` says, whose size is left out. Raises InvalidRequestError."""
    from PIL import Image

    from panoserve.vq.encode import encode_windows
    from panoserve.vq.images import from_pil

    config = engine.config
    resolved = check_extension(picture.size, sides, request, config, request.context or "reuse")

    def encode(pixels: Pixels) -> Codes:
        tensor = from_pil(Image.fromarray(pixels)).to(engine.vq.post_quant_conv.weight.device)
        return encode_windows(engine.vq, tensor, config.grid_side).numpy()

    pixels: Pixels = np.array(picture.convert("RGB"))
    drawings: dict[str, Panorama] = {}
    for axis, before, after in ((1, "left", "right"), (0, "up", "down")):
        wanted = [side for side in (before, after) if getattr(sides, side)]
        strips = {side: Strip(side, pixels, getattr(sides, side), config.grid, resolved, encode) for side in wanted}
        if not strips:
            continue
        drawn = engine.generate([strip.request for strip in strips.values()], progress=progress)
        drawings |= dict(zip(strips, drawn, strict=True))
        parts = {side: strip.part(np.array(drawings[side].image)) for side, strip in strips.items()}
        pixels = np.concatenate([a for a in (parts.get(before), pixels, parts.get(after)) if a is not None], axis=axis)
    return Extension(Image.fromarray(pixels), resolved, drawings)


class Strip:
    """What is drawn along one edge of a picture [H, W, 3]."""

    def __init__(
        self, side: str, pixels: Pixels, length: int, grid: Grid, request: PanoramaRequest, encode: Encode
    ) -> None:
        """length: pixels to add; request: a resolved request, of any size; encode: the tokenizer."""
        assert request.stride is not None and request.row_stride is not None and request.seed is not None
        self.side, self.length, self.grid = side, length, grid
        self.edge = in_frame(side, pixels)[-grid.downsample :]  # the outermost pixels that are there
        step = grid.downsample
        new = -(-length // step)
        if side == "up":
            self.known = max(grid.side - new - UP_HINT_ROWS, 1)
            given = self._given_below(pixels, new, encode)
        else:
            stride = request.stride if side in ("left", "right") else request.row_stride
            first = new - (-(-new // stride) - 1) * stride  # what the first crop adds; the others add whole strides
            there = in_frame(side, pixels).shape[0] // step
            self.known = min(max(grid.side - first, 1), there)
            given = self._given_above(pixels, new, min(there, grid.side), encode)
        codes = axes(side, given)
        self.request = replace(
            request,
            given=torch.from_numpy(codes.copy()),
            width=codes.shape[1] * step,
            height=codes.shape[0] * step,
            seed=(request.seed + ("right", "left", "down", "up").index(side)) % (MAX_SEED + 1),
        )

    def _canvas(self, rows: int, codes: Codes) -> Codes:
        """An empty canvas in the frame, for codes of a width, at least one crop each way."""
        shape = max(rows, self.grid.side), max(codes.shape[1], self.grid.side)
        return np.full(shape, UNKNOWN, dtype=np.int64)

    def _given_above(self, pixels: Pixels, new: int, context: int, encode: Encode) -> Codes:
        """The canvas of a continuation; `context` is how many codes of the picture are encoded, from the edge on."""
        frame = self._padded(in_frame(self.side, pixels)[-context * self.grid.downsample :])
        codes = axes(self.side, encode(axes(self.side, frame)))
        given = self._canvas(self.known + new, codes)
        given[: self.known, : codes.shape[1]] = codes[-self.known :]
        return given

    def _given_below(self, pixels: Pixels, new: int, encode: Encode) -> Codes:
        """The canvas above a picture. The picture's own rows are never looked at: they only fill the crops."""
        step = self.grid.downsample
        frame = self._padded(in_frame(self.side, pixels)[-self.known * step :])
        missing = self.known * step - len(frame)
        frame = np.pad(frame, ((missing, 0), (0, 0), (0, 0)), mode="edge")
        colours = smoothed(frame[-step:].mean(axis=0), 4 * step)
        stretched = np.broadcast_to(colours.round().astype(np.uint8), ((new + UP_HINT_ROWS) * step, *colours.shape))
        codes = axes(self.side, encode(axes(self.side, np.concatenate([frame, stretched]))))
        given = self._canvas(len(codes), codes)
        given[:, : codes.shape[1]] = codes
        given[self.known : self.known + new, :] = UNKNOWN
        return given

    def _padded(self, frame: Pixels) -> Pixels:
        """A frame whose axis 1 is a whole number of codes, the last pixels repeated."""
        return np.pad(frame, ((0, 0), (0, -frame.shape[1] % self.grid.downsample), (0, 0)), mode="edge")

    def part(self, decoded: Pixels) -> Pixels:
        """The new pixels, as they are laid against the picture, of the decoded canvas."""
        frame = axes(self.side, decoded)[:, : self.edge.shape[1]]
        seam, step = self.known * self.grid.downsample, self.grid.downsample
        fade, smoothing = (UP_FADE, UP_SMOOTHING) if self.side == "up" else (FADE, SMOOTHING)
        difference = self.edge.mean(axis=0) - frame[seam : seam + step].mean(axis=0)  # [W, 3]
        reach = fade * self.grid.crop_pixels
        weight = np.clip(1 - (np.arange(self.length) + 0.5) / reach, 0, 1)[:, None, None] ** 2
        drawn = frame[seam : seam + self.length] + weight * smoothed(difference, smoothing * step)
        return in_picture(self.side, drawn.clip(0, 255).round().astype(np.uint8))


def axes(side: str, array: NDArray) -> NDArray:
    """Between what the model draws [rows, columns, ...] and the frame; its own inverse."""
    if side in ("left", "right"):
        return array.swapaxes(0, 1)
    return array[::-1] if side == "up" else array


def in_frame(side: str, picture: NDArray) -> NDArray:
    """A picture [H, W, ...] in the frame of one of its sides."""
    return axes(side, picture[:, ::-1] if side == "left" else picture)


def in_picture(side: str, frame: NDArray) -> NDArray:
    """Back from the frame."""
    array = axes(side, frame)
    return array[:, ::-1] if side == "left" else array


def smoothed(values: NDArray, reach: int) -> NDArray:
    """Running mean of values [n, channels] along axis 0 over `reach` to either side, edges repeated."""
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    sums = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), padded]), axis=0)
    return (sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)
