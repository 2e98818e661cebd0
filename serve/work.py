"""Work: a picture that is made in rounds, each of one or more canvases that are drawn at the same time.

A picture drawn from nothing is one round of one canvas. Edits (extend.py, redraw.py) begin with a picture of the
client's, and may need a second round whose canvases depend on the first one's pixels. Work knows no engine: whoever
has one draws a round's requests, decodes them, and hands the pixels back (`draw_work`, or the HTTP service).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from panoserve.configs.grid import Canvas
from panoserve.configs.model import ModelConfig
from panoserve.serve.request import MAX_SEED, Panorama, PanoramaRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from panoserve.serve.engine import Engine
    from panoserve.vq.model import VQModel

Pixels = NDArray[np.uint8]  # [H, W, 3]
Codes = NDArray[np.int64]  # [H, W]
Encode = Callable[[Pixels], Codes]  # sides in pixels are multiples of the downsample factor
Decoded = Mapping[str, Pixels]  # the picture of every request of a round

UNPAINTED = (127, 127, 127)  # what is not drawn yet, in previews


class Round(ABC):
    """Canvases that are drawn at the same time. `requests` are resolved."""

    requests: dict[str, PanoramaRequest]

    @abstractmethod
    def preview(self, decoded: Decoded) -> Pixels:
        """The whole work as far as it is known, UNPAINTED elsewhere, from pictures that are UNPAINTED in places."""

    @abstractmethod
    def finish(self, decoded: Decoded) -> Round | Pixels:
        """The next round or, after the last one, the whole work."""


class Work(ABC):
    """One picture to be made.

    `request` is resolved, and its size that of the whole picture, which need not be a multiple of a code's pixels.
    `canvases` are those of all rounds.
    """

    request: PanoramaRequest
    canvases: list[Canvas]
    encodes = True  # whether `begin` takes a while

    @abstractmethod
    def begin(self, encode: Encode) -> Round:
        """The first round."""

    def with_seed(self, seed: int) -> Self:
        """The same work with another seed."""
        again = copy.copy(self)
        again.request = replace(self.request, seed=seed % (MAX_SEED + 1))
        return again

    @property
    def codes(self) -> int:
        """What the work takes, in codes: those of all canvases, given ones too."""
        return sum(canvas.codes for canvas in self.canvases)

    @property
    def rows(self) -> int:
        """Rows of all canvases."""
        return sum(canvas.rows for canvas in self.canvases)


class FreshPicture(Work):
    """A picture that begins with nothing: the request's own."""

    encodes = False

    def __init__(self, request: PanoramaRequest, config: ModelConfig) -> None:
        """request: resolved."""
        self.request = request
        self.canvases = [request.canvas(config)]

    def begin(self, encode: Encode) -> Round:
        return _OnlyRound(self.request)


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A finished work: its picture, and what was drawn for it, canvas by canvas."""

    image: Image
    request: PanoramaRequest
    drawings: dict[str, Panorama]

    @property
    def truncated(self) -> bool:
        """The prompt was longer than the text encoder takes."""
        return any(drawing.truncated for drawing in self.drawings.values())


def draw_work(engine: Engine, work: Work, progress: bool = True) -> Made:
    """Do all rounds of a work in the present process."""
    from PIL import Image

    step: Round | Pixels = work.begin(encoder(engine.vq, engine.config.grid_side))
    drawings: dict[str, Panorama] = {}
    while isinstance(step, Round):
        drawn = engine.generate(list(step.requests.values()), progress=progress)
        drawings |= dict(zip(step.requests, drawn, strict=True))
        step = step.finish({name: np.array(drawings[name].image) for name in step.requests})
    return Made(Image.fromarray(step), work.request, drawings)


def encoder(vq: VQModel, side: int) -> Encode:
    """Pixels to codes by a VQ tokenizer, in windows of side x side codes."""

    def encode(pixels: Pixels) -> Codes:
        from PIL import Image

        from panoserve.vq.encode import encode_windows
        from panoserve.vq.images import from_pil

        image = from_pil(Image.fromarray(pixels)).to(vq.post_quant_conv.weight.device)
        codes: Codes = encode_windows(vq, image, side).numpy()
        return codes

    return encode


class _OnlyRound(Round):
    def __init__(self, request: PanoramaRequest) -> None:
        self.requests = {"picture": request}

    def preview(self, decoded: Decoded) -> Pixels:
        return decoded["picture"]

    def finish(self, decoded: Decoded) -> Round | Pixels:
        return decoded["picture"]
