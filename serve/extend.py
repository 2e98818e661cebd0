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

from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from panoserve.configs.grid import Canvas, Grid
from panoserve.configs.model import ModelConfig
from panoserve.configs.wire import UNKNOWN
from panoserve.errors import InvalidRequestError
from panoserve.serve.request import MAX_SEED, PanoramaRequest, check_whole
from panoserve.serve.work import UNPAINTED, Codes, Decoded, Encode, Made, Pixels, Round, Work, draw_work

if TYPE_CHECKING:
    from PIL.Image import Image

    from panoserve.serve.engine import Engine

MAX_SIDE = 1 << 20  # pixels that may be added on one side
# What extensions take where a request does not say. A model strays from a picture that it would not have drawn itself:
# strong guidance drives it to its prompt, a wide view of the picture keeps it there (docs/log.md has the figures).
GUIDANCE = 1.5  # at most; the model's own scale if that is lower
STRIDE_SHARE = 4  # a crop adds this part of its columns (of its rows as many as otherwise)
UP_HINT_ROWS = 2  # codes
FADE, UP_FADE = 0.25, 0.5  # of a crop: how far the correction of colours reaches into what is drawn
SMOOTHING, UP_SMOOTHING = 1, 8  # codes to either side: over how much of the edge it is averaged
LINE_SMOOTHING, LINE_REACH = 2, 8  # pixels: the same for what then still differs right at the edge
ORDER = (("left", "right"), ("up", "down"))  # the sides of each round


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
    if request.guidance is None:
        resolved = replace(resolved, guidance=min(GUIDANCE, resolved.guidance or 1.0))
    if request.stride is None:
        resolved = replace(resolved, stride=usual_stride(config.grid))
    return replace(resolved, width=width, height=height)


def usual_stride(grid: Grid) -> int:
    """Columns that a crop adds where a request does not say."""
    return max(1, grid.side // STRIDE_SHARE)


def extend_picture(
    engine: Engine, picture: Image, sides: Sides, request: PanoramaRequest, progress: bool = True
) -> Made:
    """Draw around `picture` what `request` says, whose size is left out. Raises InvalidRequestError."""
    resolved = check_extension(picture.size, sides, request, engine.config, request.context or engine.context)
    return draw_work(engine, Extension(np.array(picture.convert("RGB")), sides, resolved, engine.config.grid), progress)


class Extension(Work):
    """A picture with what is drawn around it: left and right first, then above and below all of that."""

    def __init__(self, pixels: Pixels, sides: Sides, request: PanoramaRequest, grid: Grid) -> None:
        """request: what check_extension made of it."""
        self.pixels, self.sides, self.request, self.grid = pixels, sides, request, grid
        self.canvases = []
        height, width = pixels.shape[:2]
        for wanted in self.wanted(0), self.wanted(1):
            for side in wanted:
                self.canvases.append(Layout.along(side, (height, width), getattr(sides, side), grid, request).canvas)
            width += sides.left + sides.right  # of the second round's picture

    def wanted(self, index: int) -> list[str]:
        """The sides that a round draws."""
        return [side for side in ORDER[index] if getattr(self.sides, side)]

    @property
    def codes(self) -> int:
        """At least as many as the whole picture has, which is held in memory however little is drawn."""
        assert self.request.width is not None and self.request.height is not None
        step = self.grid.downsample
        return max(super().codes, -(-self.request.width // step) * -(-self.request.height // step))

    def begin(self, encode: Encode) -> Round:
        first = next(index for index in range(len(ORDER)) if self.wanted(index))
        return SidesRound(self, first, self.pixels, encode)


class SidesRound(Round):
    """Two opposite sides of a picture, or one of them."""

    def __init__(self, work: Extension, index: int, pixels: Pixels, encode: Encode) -> None:
        self.work, self.index, self.pixels, self.encode = work, index, pixels, encode
        self.strips = {
            side: Strip(side, pixels, getattr(work.sides, side), work.grid, work.request, encode)
            for side in work.wanted(index)
        }
        self.requests = {side: strip.request for side, strip in self.strips.items()}

    def preview(self, decoded: Decoded) -> Pixels:
        """Colours are brought together at the end only, when all along the edge is there to be measured."""
        there = self._joined({side: strip.cut(decoded[side]) for side, strip in self.strips.items()})
        assert self.work.request.width is not None and self.work.request.height is not None
        whole = np.full((self.work.request.height, self.work.request.width, 3), UNPAINTED, dtype=np.uint8)
        top = self.work.sides.up if self.index == 0 else 0
        whole[top : top + len(there)] = there
        return whole

    def finish(self, decoded: Decoded) -> Round | Pixels:
        pixels = self._joined({side: strip.part(decoded[side]) for side, strip in self.strips.items()})
        if self.index == 0 and self.work.wanted(1):
            return SidesRound(self.work, 1, pixels, self.encode)
        return pixels

    def _joined(self, parts: dict[str, Pixels]) -> Pixels:
        before, after = ORDER[self.index]
        in_order = [part for part in (parts.get(before), self.pixels, parts.get(after)) if part is not None]
        return np.concatenate(in_order, axis=1 - self.index)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a strip's canvas is divided, in codes along the frame: `known` from the picture's side, then `new` ones."""

    known: int
    new: int
    hint: int  # beyond those: given as well
    context: int  # how much of the picture is encoded, from its edge on
    canvas: Canvas

    @classmethod
    def along(cls, side: str, size: tuple[int, int], length: int, grid: Grid, request: PanoramaRequest) -> Layout:
        """size: (height, width) of the picture in pixels; length: pixels to add; request: resolved."""
        assert request.stride is not None and request.row_stride is not None
        step, upright = grid.downsample, side in ("up", "down")
        outwards, across = size if upright else size[::-1]
        new, there = -(-length // step), outwards // step
        if side == "up":
            hint = UP_HINT_ROWS
            context = known = max(grid.side - new - hint, 1)
        else:
            hint, context = 0, min(there, grid.side)
            stride = request.row_stride if upright else request.stride
            first = new - (-(-new // stride) - 1) * stride  # what the first crop adds; the others add whole strides
            known = min(max(grid.side - first, 1), there)
        lengths = max(known + new + hint, grid.side), max(-(-across // step), grid.side)
        return cls(known, new, hint, context, Canvas(*(lengths if upright else lengths[::-1])))


class Strip:
    """What is drawn along one edge of a picture [H, W, 3]."""

    def __init__(
        self, side: str, pixels: Pixels, length: int, grid: Grid, request: PanoramaRequest, encode: Encode
    ) -> None:
        """length: pixels to add; request: a resolved request, of any size; encode: the tokenizer."""
        assert request.seed is not None
        self.side, self.length, self.grid = side, length, grid
        self.edge = in_frame(side, pixels)[-grid.downsample :]  # the outermost pixels that are there
        self.layout = Layout.along(side, (pixels.shape[0], pixels.shape[1]), length, grid, request)
        canvas = np.full((self.layout.canvas.rows, self.layout.canvas.columns), UNKNOWN, dtype=np.int64)
        given = axes(side, canvas)  # a view
        codes = self._codes_below(pixels, encode) if side == "up" else self._codes_above(pixels, encode)
        given[: len(codes), : codes.shape[1]] = codes
        given[self.layout.known : self.layout.known + self.layout.new] = UNKNOWN
        self.request = replace(
            request,
            given=torch.from_numpy(canvas),
            width=canvas.shape[1] * grid.downsample,
            height=canvas.shape[0] * grid.downsample,
            seed=(request.seed + ("right", "left", "down", "up").index(side)) % (MAX_SEED + 1),
        )

    @property
    def known(self) -> int:
        """Rows of the frame that are given before anything is drawn."""
        return self.layout.known

    def _codes_above(self, pixels: Pixels, encode: Encode) -> Codes:
        """What a continuation is given: the picture's outermost codes."""
        frame = self._padded(in_frame(self.side, pixels)[-self.layout.context * self.grid.downsample :])
        return axes(self.side, encode(axes(self.side, frame)))[-self.known :]

    def _codes_below(self, pixels: Pixels, encode: Encode) -> Codes:
        """What stands above a picture. The picture's own rows are never looked at: they only fill the crops."""
        step = self.grid.downsample
        frame = self._padded(in_frame(self.side, pixels)[-self.known * step :])
        missing = self.known * step - len(frame)
        frame = np.pad(frame, ((missing, 0), (0, 0), (0, 0)), mode="edge")
        colours = smoothed(frame[-step:].mean(axis=0), 4 * step)
        rows = (self.layout.new + self.layout.hint) * step
        stretched = np.broadcast_to(colours.round().astype(np.uint8), (rows, *colours.shape))
        return axes(self.side, encode(axes(self.side, np.concatenate([frame, stretched]))))

    def _padded(self, frame: Pixels) -> Pixels:
        """A frame whose axis 1 is a whole number of codes, the last pixels repeated."""
        return np.pad(frame, ((0, 0), (0, -frame.shape[1] % self.grid.downsample), (0, 0)), mode="edge")

    def cut(self, decoded: Pixels) -> Pixels:
        """The new pixels of the decoded canvas, as they were decoded and as they are laid against the picture."""
        seam = self.known * self.grid.downsample
        frame = axes(self.side, decoded)[:, : self.edge.shape[1]]
        return in_picture(self.side, frame[seam : seam + self.length])

    def part(self, decoded: Pixels) -> Pixels:
        """The same, with colours brought together where it meets the picture."""
        frame = axes(self.side, decoded)[:, : self.edge.shape[1]]
        seam, step = self.known * self.grid.downsample, self.grid.downsample
        fade, smoothing = (UP_FADE, UP_SMOOTHING) if self.side == "up" else (FADE, SMOOTHING)
        difference = self.edge.mean(axis=0) - frame[seam : seam + step].mean(axis=0)  # [W, 3]
        reach = fade * self.grid.crop_pixels
        weight = np.clip(1 - (np.arange(self.length) + 0.5) / reach, 0, 1)[:, None, None] ** 2
        drawn = frame[seam : seam + self.length] + weight * smoothed(difference, smoothing * step)
        line = smoothed(self.edge[-1] - drawn[0], LINE_SMOOTHING)  # seen as a line in smooth skies
        near = drawn[: 6 * LINE_REACH]
        near += membrane(line, len(near), LINE_REACH)
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


def membrane(values: NDArray, depth: int, reach: float) -> NDArray:
    """What differences [n, channels] at an edge become on `depth` pixels beside it: [depth, n, channels].

    The harmonic continuation, as a membrane that is held at the edge: each wave along the edge fades over its own
    length, so that fine differences stay there; besides, everything fades over `reach` pixels.
    """
    count = len(values)
    waves = np.fft.rfft(np.concatenate([values, values[::-1]]), axis=0)  # k half waves on the edge, k = 0 .. n
    away = np.arange(depth)[:, None] + 0.5
    fading = np.exp(-away * (np.pi * np.arange(count + 1) / count + 1 / reach))
    return np.fft.irfft(fading[:, :, None] * waves, n=2 * count, axis=1)[:, :count]
