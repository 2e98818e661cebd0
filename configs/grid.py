"""The geometry that everything shares: token grid, canvas, and their sizes in pixels.

Read this first. A *code* is one entry of the VQ codebook and covers `downsample` x `downsample` pixels. A model is
trained on a *token grid* of side x side codes; a window of that size on a larger *canvas* is a *crop*.
"""

from __future__ import annotations

from dataclasses import dataclass

from panoserve.errors import InvalidRequestError

MAX_SIDE = 2**31 - 1  # of a picture, in pixels; no file format holds more


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture measured in codes: rows x columns."""

    rows: int
    columns: int

    @property
    def codes(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a canvas that becomes the picture, in codes: all of it, or the middle of a crop larger than it."""

    top: int
    left: int
    rows: int
    columns: int

    def box(self, downsample: int) -> tuple[int, int, int, int]:
        """Its (left, top, right, bottom) edges in pixels."""
        right, bottom = self.left + self.columns, self.top + self.rows
        return self.left * downsample, self.top * downsample, right * downsample, bottom * downsample


@dataclass(frozen=True, slots=True)
class Grid:
    """The square token grid of a model: `side` codes a side, each `downsample` pixels wide and high."""

    side: int
    downsample: int

    def __post_init__(self) -> None:
        if self.side < 1 or self.downsample < 1:
            raise ValueError(f"grid side and downsample must be positive, got {self.side} and {self.downsample}")

    @property
    def codes(self) -> int:
        """Number of codes in one crop (N = g * g)."""
        return self.side * self.side

    @property
    def crop_pixels(self) -> int:
        """Width and height of one crop in pixels."""
        return self.side * self.downsample

    @property
    def default_stride(self) -> int:
        """Three quarters of the side: upstream's default (24 of 32); quality is flat up to there (facts.md 6.1)."""
        return max(1, self.side * 3 // 4)

    def canvas_of(self, width: int, height: int) -> Canvas:
        """The canvas that a picture of width x height pixels is drawn on: each way at least one crop.

        Raises InvalidRequestError, naming the nearest size that works, unless both are multiples of `downsample`.
        """
        for name, pixels in (("width", width), ("height", height)):
            if isinstance(pixels, bool) or not isinstance(pixels, int):
                raise InvalidRequestError(f"{name} must be a whole number of pixels, got {pixels!r}", name)
            if pixels > MAX_SIDE:
                raise InvalidRequestError(f"{name} is {pixels} pixels, but at most {MAX_SIDE} are possible", name)
            if pixels % self.downsample or pixels < self.downsample:
                nearest = max(1, round(pixels / self.downsample)) * self.downsample
                raise InvalidRequestError(
                    f"{name} is {pixels} pixels, but this model needs a multiple of {self.downsample}; the nearest is "
                    f"{nearest}",
                    name,
                )
        rows, columns = height // self.downsample, width // self.downsample
        return Canvas(max(rows, self.side), max(columns, self.side))

    def frame_of(self, width: int, height: int) -> Frame:
        """Which part of its canvas a picture of width x height pixels is: the middle, where a crop is larger."""
        canvas = self.canvas_of(width, height)
        rows, columns = height // self.downsample, width // self.downsample
        return Frame((canvas.rows - rows) // 2, (canvas.columns - columns) // 2, rows, columns)

    def check_stride(self, stride: int, name: str = "stride") -> None:
        """Raise InvalidRequestError about request field `name` unless 1 <= stride <= side."""
        if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= self.side:
            raise InvalidRequestError(
                f"{name} is {stride!r}, but must be a whole number from 1 to {self.side} (the grid side); "
                f"{self.default_stride} is a good value",
                name,
            )
