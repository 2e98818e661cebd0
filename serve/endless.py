"""Panoramas without an end: drawn segment after segment, for as long as someone asks for more.

A segment is an ordinary request: a canvas of a few crops whose first columns, those that its first crop shares with the
last crop before, are given. The engine knows nothing of it and keeps nothing between segments; of the codes, only what
the next segment is given is kept. Crops stand where they would on one long canvas, with its seeds and its prompts
(`Part`). So in context `recompute` the codes are those of one long panorama, whatever the length of the segments; in
`reuse`, those of one in which every segment begins with a crop that is fed what it is given, as where a new prompt
begins.

What it costs: a wavefront fills and drains in every segment, instead of once (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from panoserve.configs.model import ModelConfig
from panoserve.configs.wire import UNKNOWN
from panoserve.errors import InvalidRequestError
from panoserve.serve.prompts import MAX_PLACE, Part, PromptAt
from panoserve.serve.request import PanoramaRequest, check_subject, check_whole, given_size

if TYPE_CHECKING:
    from panoserve.serve.engine import AsyncEngine, Engine
    from panoserve.serve.request import Panorama

Direction = Literal["right", "down"]
DIRECTIONS: tuple[Direction, ...] = ("right", "down")
MAX_CROPS = 4096
# Names of fields: a panorama's length and breadth, and places of a prompt along it and across it.
FIELDS = {
    "right": ("width", "height", "left", "right", "top", "bottom"),
    "down": ("height", "width", "top", "bottom", "left", "right"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """New codes at the end of an endless canvas, all across it.

    `start` is their first column and `codes` int64 [H, n]; growing downwards, their first row and [n, W].
    """

    start: int
    codes: torch.Tensor


class Frontier:
    """How far an endless panorama has come, and which request draws its next segment. Knows no engine."""

    def __init__(
        self,
        request: PanoramaRequest,
        config: ModelConfig,
        context: str = "reuse",
        *,
        direction: Direction = "right",
        crops: int | None = None,
        limit: int | None = None,
        start: int = 0,
    ) -> None:
        """See Engine.endless for the arguments. Raises InvalidRequestError for a request that cannot be endless."""
        if direction not in DIRECTIONS:
            raise InvalidRequestError(f"direction is {direction!r}, but must be {' or '.join(DIRECTIONS)}", "direction")
        self.config = config
        self.axis = 1 if direction == "right" else 0
        self.length, self.across, *self.places = FIELDS[direction]
        self.crops = config.grid.side if crops is None else crops
        self.limit = limit
        check_whole("crops", self.crops, 1, MAX_CROPS)
        check_whole("start", start, 0, MAX_PLACE)
        if limit is not None:
            check_whole("limit", limit, 1, MAX_PLACE)
        self._check(request)
        self.tail = self._given(request)  # the last codes drawn, at most a crop of them: [H, n] or [n, W]
        self.end = start + (0 if self.tail is None else self.tail.shape[self.axis])  # first column (row) not drawn yet
        self._asked = self.end  # where the segment under way will end
        codes = self.crops * self.step_of(request) + config.grid_side
        sizes: dict[str, Any] = {self.length: codes * config.grid.downsample, self.across: self._pixels_across(request)}
        self.request = replace(request, given=None, **sizes).resolve(config, context)
        self.prompts: list[PromptAt] = [p for p in self.request.prompts or () if isinstance(p, PromptAt)]
        for prompt in self.prompts:
            self._check_prompt(prompt)

    @property
    def done(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.end * self.config.grid.downsample >= self.limit

    @property
    def step(self) -> int:
        """Columns (rows) that a crop adds."""
        return self.step_of(self.request)

    def step_of(self, request: PanoramaRequest) -> int:
        stride = self.config.grid.default_stride if request.stride is None else request.stride
        step = stride if self.axis or request.row_stride is None else request.row_stride
        self.config.grid.check_stride(step, "stride" if self.axis else "row_stride")
        return step

    @property
    def next_length(self) -> int:
        """Columns (rows) of the next segment, given ones too: whole crops, as many as are wanted and still needed."""
        grid, crops = self.config.grid, self.crops
        if self.limit is not None:
            missing = -(-self.limit // grid.downsample) - (self.end - self._overlap(self.end)) - grid.side
            crops = min(crops, 1 + max(0, -(-missing // self.step)))
        return grid.side + (crops - 1) * self.step

    def next_request(self) -> PanoramaRequest:
        """The next segment."""
        grid = self.config.grid
        overlap, length = self._overlap(self.end), self.next_length
        begin = self.end - overlap
        self._asked = begin + length
        given = None
        if overlap:
            assert self.tail is not None
            shape = list(self.tail.shape)
            shape[self.axis] = length
            given = torch.full(shape, UNKNOWN)
            given.narrow(self.axis, 0, overlap).copy_(
                self.tail.narrow(self.axis, self.tail.shape[self.axis] - overlap, overlap)
            )
        pixels = {name: getattr(self.request, name) for name in ("width", "height")}
        whole = {**pixels, self.length: math.inf}
        part = Part(0, begin, **whole) if self.axis else Part(begin, 0, **whole)
        size: dict[str, Any] = {self.length: length * grid.downsample}
        half = grid.crop_pixels / 2
        first, last = begin * grid.downsample + half, (begin + length) * grid.downsample - half
        subject, prompts = self._in_force(first, last)
        shown = {name: getattr(subject, name) for name in ("prompt", "label", "features")}
        return replace(self.request, **size, **shown, given=given, part=part, prompts=prompts or None)

    def take(self, codes: torch.Tensor) -> Strip:
        """Take over the codes that `next_request` asked for, and hand on those that are new."""
        overlap = self._overlap(self.end)
        new = codes.narrow(self.axis, overlap, codes.shape[self.axis] - overlap)
        strip = Strip(self.end, new.clone())
        self.end += new.shape[self.axis]
        self._asked = self.end
        kept = min(self.config.grid_side, codes.shape[self.axis])
        self.tail = codes.narrow(self.axis, codes.shape[self.axis] - kept, kept).clone()
        return strip

    def steer(self, prompt: PromptAt) -> int:
        """See _Endless.steer."""
        check_subject(prompt, self.config)
        grid = self.config.grid
        # The centre of the first crop that is not asked for yet, which decides what it shows.
        earliest = (self._asked - self._overlap(self._asked)) * grid.downsample + grid.crop_pixels // 2
        place = max(earliest, getattr(prompt, self.places[0]))
        self.prompts.append(replace(prompt, **{self.places[0]: place}))
        return place

    def _overlap(self, end: int) -> int:
        """How many codes before `end` the crop that goes on from there is given."""
        there = 0 if self.tail is None else self.tail.shape[self.axis]
        if end > self.end:  # drawn by then
            there = self.config.grid_side
        return min(there, self.config.grid_side - self.step)

    def _in_force(self, begin: float, end: float) -> tuple[PanoramaRequest | PromptAt, list[PromptAt]]:
        """What crops centred between two pixels may show: the last subject that hides all before it, and later ones."""
        near = self.request.blend / 2
        subject: PanoramaRequest | PromptAt = self.request
        kept: list[PromptAt] = []
        first, last, side, other_side = self.places
        for prompt in self.prompts:
            left, right = getattr(prompt, first), getattr(prompt, last)
            if left > end + near or (right is not None and right <= begin - near):
                continue
            across = getattr(prompt, side) == 0 and getattr(prompt, other_side) is None
            if across and right is None and left <= begin - near:
                subject, kept = prompt, []
            else:
                kept.append(prompt)
        return subject, kept

    def _check(self, request: PanoramaRequest) -> None:
        if getattr(request, self.length) is not None:
            raise InvalidRequestError(
                f"{self.length} is {getattr(request, self.length)}, but an endless panorama grows in {self.length}; "
                "leave it out (a limit says when to stop)",
                self.length,
            )
        if request.loop:
            raise InvalidRequestError("loop is True, but an endless panorama never comes back; leave it out", "loop")
        if request.part is not None:
            raise InvalidRequestError("part is set, but an endless panorama sets it itself; use start", "part")
        if isinstance(request.blend, float):
            raise InvalidRequestError(
                f"blend is {request.blend}, but an endless panorama has no width to take a share of; give pixels",
                "blend",
            )

    def _check_prompt(self, prompt: PromptAt) -> None:
        for name in self.places[:2]:
            if isinstance(getattr(prompt, name), float):
                raise InvalidRequestError(
                    f"{name} of a prompt is {getattr(prompt, name)}, but an endless panorama has no {self.length} to "
                    "take a share of; give whole pixels",
                    "prompts",
                )

    def _pixels_across(self, request: PanoramaRequest) -> int:
        """What the request says, or as much as is given, or one crop."""
        asked: int | None = getattr(request, self.across)
        if self.tail is None and asked is not None and asked < self.config.grid.crop_pixels:
            raise InvalidRequestError(
                f"{self.across} is {asked} pixels, but an endless panorama is at least one crop across "
                f"({self.config.grid.crop_pixels})",
                self.across,
            )
        if self.tail is None:
            return self.config.grid.crop_pixels if asked is None else asked
        pixels = self.tail.shape[1 - self.axis] * self.config.grid.downsample
        if asked not in (None, pixels):
            raise InvalidRequestError(
                f"given is {pixels} pixels across, but {self.across} is {asked}; leave it out", self.across
            )
        return pixels

    def _given(self, request: PanoramaRequest) -> torch.Tensor | None:
        """The last crop of the codes that the panorama goes on from."""
        if request.given is None:
            return None
        length = given_size(request.given)[self.axis]
        if bool((request.given < 0).any()) or bool((request.given >= self.config.vocab_size).any()):
            raise InvalidRequestError(
                f"given holds codes below 0 or above {self.config.vocab_size - 1}; an endless panorama goes on from "
                "codes that are all known",
                "given",
            )
        kept = min(length, self.config.grid_side)
        return request.given.narrow(self.axis, length - kept, kept).long()


class _Endless:
    """What both iterators share. `request` is resolved: its seed is the one drawn with."""

    def __init__(self, frontier: Frontier) -> None:
        self.frontier = frontier
        self.truncated = False  # whether a prompt was longer than the text encoder takes

    @property
    def request(self) -> PanoramaRequest:
        """The request with every value filled in, and all prompts that it was steered by."""
        return replace(self.frontier.request, prompts=tuple(self.frontier.prompts) or None)

    def _take(self, panorama: Panorama) -> Strip:
        self.truncated = self.truncated or panorama.truncated
        return self.frontier.take(panorama.codes)

    def steer(
        self,
        prompt: str | None = None,
        *,
        label: int | None = None,
        features: torch.Tensor | None = None,
        at: int = 0,
    ) -> int:
        """Draw something else from pixel `at` on, or from the first crop that is not under way yet if that is later.

        Returns the pixel. May be called at any time between strips or, with an AsyncEngine, while one is drawn. Raises
        InvalidRequestError unless exactly one subject is given, of the model's kind.
        """
        place = {self.frontier.places[0]: at}
        return self.frontier.steer(PromptAt(prompt=prompt, label=label, features=features, **place))  # type: ignore[arg-type]


class Endless(_Endless, Iterator[Strip]):
    """Strips of an endless panorama; each is drawn when it is asked for."""

    def __init__(self, engine: Engine, frontier: Frontier, advance: Callable[[int], Any] = int) -> None:
        super().__init__(frontier)
        self._engine, self._advance = engine, advance

    def __next__(self) -> Strip:
        if self.frontier.done:
            raise StopIteration
        [(_, result)] = self._engine.draw([self.frontier.next_request()], self._advance)
        if isinstance(result, Exception):
            raise result
        return self._take(result)


class AsyncEndless(_Endless, AsyncIterator[Strip]):
    """The same for an AsyncEngine. Cancelling what waits for a strip aborts its drawing."""

    def __init__(self, engine: AsyncEngine, frontier: Frontier) -> None:
        super().__init__(frontier)
        self._engine = engine

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Strip:
        if self.frontier.done:
            raise StopAsyncIteration
        panorama = await self._engine.generate(self.frontier.next_request(), decode=False)
        return self._take(panorama)
