"""Prompts along a panorama: which prompt is in force where, and what each crop is conditioned on.

The request's own subject (prompt, label or features) holds everywhere, and each `PromptAt` holds in its rectangle
instead; where rectangles overlap, the one listed last. A crop is conditioned on what is in force at its centre or, with
`blend`, on the mean of the caption features in force around it. The masks of other methods are not needed: what a crop
shows is decided by its prompt, and how it joins its neighbours by the codes they share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from panoserve.configs.grid import Grid
from panoserve.errors import InvalidRequestError

if TYPE_CHECKING:
    import torch

    from panoserve.serve.request import PanoramaRequest

Place = int | float  # along a side of the picture: a whole number is pixels, one with a decimal point a share of it
Mixture = tuple[tuple[int, float], ...]  # (subject, share) of a crop; shares add up to 1
MAX_PLACE = 2**53  # pixels, along a panorama without an end, too; a float holds them all
SAMPLES = 16  # places a side at which a blend looks up what is in force


@dataclass(frozen=True, slots=True, eq=False)
class PromptAt:
    """What to draw in one rectangle of the picture: exactly one of prompt, label and features, and where."""

    prompt: str | None = None
    label: int | None = None
    features: torch.Tensor | None = None  # [n, caption_dim]
    left: Place = 0
    right: Place | None = None  # None: the picture's edge
    top: Place = 0
    bottom: Place | None = None

    def area(self, width: float, height: float) -> tuple[float, float, float, float]:
        """The rectangle (left, right, top, bottom) in pixels, of a picture of width x height."""
        right, bottom = width if self.right is None else self.right, height if self.bottom is None else self.bottom
        return _pixels(self.left, width), _pixels(right, width), _pixels(self.top, height), _pixels(bottom, height)

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults; features cannot be written."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True, slots=True)
class Part:
    """Where a canvas stands on a larger picture that is drawn part by part.

    Places of prompts are places on that picture, and crops have the seeds that they would have if it were drawn whole.
    """

    row: int  # of the canvas's first code
    column: int
    width: float  # of the whole picture, in pixels; infinite if it has no end
    height: float


def _pixels(place: Place, side: float) -> float:
    return place * side if isinstance(place, float) else place


def parse_prompts(values: Any) -> tuple[PromptAt, ...]:
    """`prompts` of a request as PromptAt, from those or from mappings of their fields. Raises InvalidRequestError."""
    names = [f.name for f in fields(PromptAt)]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise InvalidRequestError(f"prompts are {values!r}; expected a list of prompts with their places", "prompts")
    parsed = []
    for value in values:
        if isinstance(value, PromptAt):
            parsed.append(value)
        elif isinstance(value, Mapping) and value.keys() <= set(names):
            parsed.append(PromptAt(**{name: given for name, given in value.items() if given is not None}))
        else:
            got = sorted(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise InvalidRequestError(
                f"an entry of prompts is {got}; expected a mapping with the fields {', '.join(names)}", "prompts"
            )
    return tuple(parsed)


def check_place(name: str, place: Any) -> None:
    """Raise InvalidRequestError unless `place` is whole pixels or a share from 0.0 to 1.0."""
    pixels = isinstance(place, int) and not isinstance(place, bool) and 0 <= place <= MAX_PLACE
    share = isinstance(place, float) and 0 <= place <= 1
    if not pixels and not share:
        raise InvalidRequestError(
            f"{name} is {place!r}; expected whole pixels from 0 to {MAX_PLACE}, or a share from 0.0 to 1.0 with a "
            "decimal point",
            "prompts" if name != "blend" else "blend",
        )


def mixtures(request: PanoramaRequest, grid: Grid, windows: Iterable[tuple[int, int]]) -> list[Mixture]:
    """What each window (row, column) of a resolved request's canvas is conditioned on.

    Subject 0 is the request's own, subject i + 1 that of prompts[i].
    """
    assert request.prompts is not None and request.width is not None and request.height is not None
    frame = grid.frame_of(request.width, request.height)
    part = request.part or Part(-frame.top, -frame.left, request.width, request.height)
    width, height = part.width, part.height
    blend_x, blend_y = _pixels(request.blend, width), _pixels(request.blend, height)
    steps = [(index + 0.5) / SAMPLES - 0.5 for index in range(SAMPLES)] if request.blend else [0.0]
    areas = [prompt.area(width, height) for prompt in request.prompts]
    found = []
    for row, column in windows:
        starts = (column + part.column, row + part.row)
        middle_x, middle_y = (start * grid.downsample + grid.crop_pixels / 2 for start in starts)
        xs = [middle_x + step * blend_x for step in steps]
        xs = [x % width if request.loop else min(max(x, 0), width - 1) for x in xs]
        ys = [min(max(middle_y + step * blend_y, 0), height - 1) for step in steps]
        near: list[tuple[int, list[bool], list[bool]]] = []  # subjects that hold somewhere around, the last one first
        for subject, (left, right, top, bottom) in reversed(list(enumerate(areas, start=1))):
            across, down = [left <= x < right for x in xs], [top <= y < bottom for y in ys]
            if any(across) and any(down):
                near.append((subject, across, down))
        counts = Counter(
            next((subject for subject, across, down in near if across[i] and down[j]), 0)
            for i in range(len(xs))
            for j in range(len(ys))
        )
        found.append(tuple((subject, count / counts.total()) for subject, count in sorted(counts.items())))
    return found


def mix(features: Sequence[torch.Tensor], mixture: Mixture) -> torch.Tensor:
    """The weighted mean of captions [n_i, caption_dim], aligned at their ends: [max n_i, caption_dim].

    Captions stand right before the picture, so their ends meet; what a shorter one lacks in front counts as zeros,
    which the published models project to exact zeros (facts.md 1.4).
    """
    if len(mixture) == 1:
        return features[mixture[0][0]]
    import torch

    rows = max(len(features[subject]) for subject, _ in mixture)
    mixed = torch.zeros(rows, features[0].shape[1])
    for subject, share in mixture:
        mixed[rows - len(features[subject]) :] += share * features[subject].float()
    return mixed


def beside(caption: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """A caption [n, d] and a negative one [m, d], condensed or stretched to n rows, side by side: [n, 2 d].

    The fast twin of `CaptionEmbedder.negative` (models/reference.py), which says why.
    """
    import torch

    fitted = torch.nn.functional.adaptive_avg_pool1d(negative.float().T[None], len(caption))[0].T
    return torch.cat([caption.float(), fitted], dim=1)
