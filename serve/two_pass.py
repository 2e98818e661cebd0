"""Draw twice: a coarse panorama first, and then the same one larger, guided by the coarse one.

A model fills crops, and knows scenes of the size of a crop. On a canvas that is larger both ways it loses the scene
below the first band. So the first pass draws all of it on a canvas whose shorter side is one crop. Its picture is
enlarged and encoded again, and some of those codes are given to the second pass, which draws the others: scene and
colours come from the first pass, detail from the second.

Which codes are given is chance, under a probability that is 1 in the first row and the first column that a crop draws,
falls from there in a straight line, and stays at `hold` (REACH, HOLD; docs/log.md has the figures). The second pass is
an ordinary request with given codes, so it is planned, drawn and tested like any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from panoserve.configs.grid import Canvas
from panoserve.configs.model import ModelConfig
from panoserve.configs.wire import UNKNOWN
from panoserve.errors import InvalidRequestError
from panoserve.serve.prompts import PromptAt
from panoserve.serve.request import MAX_SEED, Panorama, PanoramaRequest, check_number

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from panoserve.serve.engine import Engine

    Encode = Callable[[Image], torch.Tensor]  # a picture to its codes int64 [h, w]

HOLD = 0.5  # of the codes are given in the middle of a crop
MAX_HOLD = 0.95  # more would leave nothing to draw in a small crop
REACH = 0.25  # of a crop: over which the share falls from 1 to HOLD


@dataclass(frozen=True, slots=True, eq=False)
class TwoPass:
    """A panorama drawn twice. `request` is what was asked for, resolved; `coarse` and `panorama` have their own."""

    request: PanoramaRequest
    coarse: Panorama
    panorama: Panorama


def draw_two_pass(
    engine: Engine,
    requests: Sequence[PanoramaRequest],
    *,
    hold: float = HOLD,
    decode: bool = True,
    progress: bool = True,
) -> list[TwoPass]:
    """Draw every request in two passes, each pass one batch. Raises as Engine.generate does, and as `check_two_pass`.

    hold: share of the coarse picture's codes that is given in the middle of crops; more follows it more closely.
    """
    from panoserve.vq.encode import encode_windows
    from panoserve.vq.images import from_pil

    config = engine.config

    def encode(picture: Image) -> torch.Tensor:
        pixels = from_pil(picture).to(engine.vq.post_quant_conv.weight.device)
        return encode_windows(engine.vq, pixels, config.grid_side)

    asked = [check_two_pass(request, config, request.context or engine.context, hold) for request in requests]
    coarse = engine.generate([coarse_request(request, config) for request in asked], progress=progress)
    guided = [
        guided_request(request, config, panorama.image, encode, hold)
        for request, panorama in zip(asked, coarse, strict=True)
        if panorama.image is not None
    ]
    drawn = engine.generate(guided, decode=decode, progress=progress)
    return [TwoPass(*made) for made in zip(asked, coarse, drawn, strict=True)]


def check_two_pass(
    request: PanoramaRequest, config: ModelConfig, context: str = "reuse", hold: float = HOLD
) -> PanoramaRequest:
    """The resolved request of a panorama in two passes. Raises InvalidRequestError."""
    for name in ("given", "part"):
        if getattr(request, name) is not None:
            raise InvalidRequestError(
                f"{name} cannot be set when a panorama is drawn in two passes; leave it out", name
            )
    check_number("hold", hold, 0, MAX_HOLD)
    resolved = request.resolve(config, context)
    assert resolved.width is not None and resolved.height is not None
    crop = config.grid.crop_pixels
    if min(resolved.width, resolved.height) <= crop:
        raise InvalidRequestError(
            f"the panorama is {resolved.width}x{resolved.height} pixels, but two passes need more than one "
            f"crop ({crop}) each way; draw it in one pass",
            "height" if resolved.height <= crop else "width",
        )
    return resolved


def coarse_request(request: PanoramaRequest, config: ModelConfig) -> PanoramaRequest:
    """The first pass of a resolved request: the same panorama, its shorter side one crop."""
    assert request.width is not None and request.height is not None
    grid = config.grid
    scale = grid.crop_pixels / min(request.width, request.height)
    narrowest = grid.crop_pixels + (grid.downsample if request.loop else 0)  # a loop is wider than a crop

    def reduced(pixels: int, least: int) -> int:
        return max(least, round(pixels * scale / grid.downsample) * grid.downsample)

    width, height = reduced(request.width, narrowest), reduced(request.height, grid.crop_pixels)
    sides = {"left": width / request.width, "right": width / request.width}
    sides |= {"top": height / request.height, "bottom": height / request.height}

    def moved(prompt: PromptAt) -> PromptAt:
        places = {name: getattr(prompt, name) for name in sides}
        whole: dict[str, Any] = {
            name: round(place * sides[name]) for name, place in places.items() if isinstance(place, int)
        }
        return replace(prompt, **whole)

    prompts = [moved(prompt) for prompt in request.prompts or () if isinstance(prompt, PromptAt)]
    blend = round(request.blend * scale) if isinstance(request.blend, int) else request.blend
    return replace(request, width=width, height=height, prompts=prompts or None, blend=blend)


def guided_request(
    request: PanoramaRequest, config: ModelConfig, coarse: Image, encode: Encode, hold: float = HOLD
) -> PanoramaRequest:
    """The second pass of a resolved request, guided by the picture of the first one."""
    import torch

    assert request.width is not None and request.height is not None and request.seed is not None
    codes = encoded(coarse, (request.width, request.height), config, encode, request.loop)
    shares = given_shares(request.canvas(config), request.windows(config), config.grid_side, hold)
    chance = random.Random(request.seed)
    draws = torch.tensor([[chance.random() for _ in row] for row in shares], dtype=torch.float64)
    given = torch.where(draws < torch.from_numpy(shares), codes, UNKNOWN)
    # Equal seeds would give the first crop of either pass the same random numbers.
    return replace(request, given=given, seed=(request.seed + 1) % (MAX_SEED + 1))


def encoded(coarse: Image, size: tuple[int, int], config: ModelConfig, encode: Encode, loop: bool) -> torch.Tensor:
    """The codes [H, W] of a picture enlarged to `size`, (width, height); with `loop`, seen all around."""
    from PIL import Image as pil

    width, height = size
    step = config.grid.downsample
    if not loop:
        return encode(coarse.resize(size, pil.Resampling.LANCZOS))
    margin = config.grid_side // 2  # codes of the enlarged picture that are seen beyond either edge
    reach = margin * step * coarse.width / width  # the same in the coarse picture
    whole = pil.new("RGB", (3 * coarse.width, coarse.height))
    for turn in range(3):
        whole.paste(coarse, (turn * coarse.width, 0))
    box = (coarse.width - reach, 0.0, 2 * coarse.width + reach, float(coarse.height))
    around = encode(whole.resize((width + 2 * margin * step, height), pil.Resampling.LANCZOS, box))
    return around[:, margin : margin + width // step]


def given_shares(
    canvas: Canvas, windows: Iterable[tuple[int, int]], side: int, hold: float, reach: float = REACH
) -> NDArray[np.float64]:
    """With what probability each code of the canvas is given to the second pass: [H, W].

    windows: first (row, column) of every crop, in drawing order. reach: in crops.
    """
    import numpy as np

    shares = np.zeros((canvas.rows, canvas.columns))
    free = np.ones(shares.shape, dtype=bool)
    steps = np.arange(side)
    for row, column in windows:
        window = np.ix_(row + steps, (column + steps) % canvas.columns)
        new = free[window]
        if new.any():  # a crop draws a rectangle, or nothing
            below, behind = steps - new.any(axis=1).argmax(), steps - new.any(axis=0).argmax()
            distance = np.minimum(below[:, None], behind)
            falling = 1 - distance / (reach * side)
            shares[window] = np.where(new, np.maximum(falling, hold), shares[window])
            free[window] = False
    return shares.clip(0, 1)
