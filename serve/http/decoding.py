"""Codes to pixels for the HTTP service: canvases of one kind are decoded as one batch, where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from panoserve.serve.work import UNPAINTED, Pixels
from panoserve.vq.endless import decode_windows
from panoserve.vq.images import to_pil
from panoserve.vq.loops import decode_loop
from panoserve.vq.tiled import decode_tiled, decodes_at_once

if TYPE_CHECKING:
    from panoserve.configs.model import ModelConfig
    from panoserve.serve.request import PanoramaRequest
    from panoserve.vq.model import VQModel


class Kind(NamedTuple):
    """What canvases must have in common to be decoded as one batch."""

    rows: int
    columns: int
    around: bool
    scenes: bool  # it shows several, and is decoded in windows


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A canvas to decode: codes int64 [h, W], of which fewer rows may be there than the request asks for."""

    request: PanoramaRequest
    codes: torch.Tensor

    @property
    def kind(self) -> Kind:
        (rows, columns), loop = self.codes.shape, self.request.loop
        return Kind(rows, columns, loop, scenes=bool(self.request.prompts) and not loop)


class CanvasDecoder:
    """A VQ tokenizer's decoder, and the `memory` in bytes that it may keep activations in."""

    def __init__(self, model: ModelConfig, vq: VQModel, memory: int) -> None:
        self._model = model
        self._vq = vq
        self._memory = memory

    def as_one(self, parts: Sequence[Part]) -> bool:
        """Whether they are decoded as one batch."""
        kinds = {part.kind for part in parts}
        return len(kinds) == 1 and len(parts) <= self._at_once(kinds.pop())

    def pictures(self, parts: Sequence[Part]) -> list[Pixels]:
        """Their pictures, each cut to its request's frame; rows that are not there are UNPAINTED."""
        kinds: dict[Kind, list[int]] = {}
        for place, part in enumerate(parts):
            kinds.setdefault(part.kind, []).append(place)
        pixels: dict[int, Pixels] = {}
        for kind, places in kinds.items():
            step = self._at_once(kind)
            for some in (places[i : i + step] for i in range(0, len(places), step)):
                decoded = self._decoded(kind, torch.stack([parts[place].codes for place in some]))
                pixels |= {place: self._painted(parts[place].request, decoded[i]) for i, place in enumerate(some)}
        return [pixels[place] for place in range(len(parts))]

    def _at_once(self, kind: Kind) -> int:
        if kind.scenes or not kind.rows:
            return 1
        return decodes_at_once(self._vq, kind.rows, kind.columns, self._memory)

    def _decoded(self, kind: Kind, codes: torch.Tensor) -> torch.Tensor:
        """The pictures [B, 3, H, W] of canvases [B, h, w]."""
        if not kind.rows:
            return torch.empty(len(codes), 3, 0, kind.columns * self._vq.config.downsample)
        if kind.scenes:
            return decode_windows(self._vq, codes[0], self._model.grid_side, self._memory)[None]
        return (decode_loop if kind.around else decode_tiled)(self._vq, codes, memory=self._memory)

    def _painted(self, request: PanoramaRequest, picture: torch.Tensor) -> Pixels:
        canvas, frame, step = request.canvas(self._model), request.frame(self._model), self._vq.config.downsample
        pixels = np.full((canvas.rows * step, canvas.columns * step, 3), UNPAINTED, dtype=np.uint8)
        height = picture.shape[1]
        if height:
            pixels[:height] = np.asarray(to_pil(picture))
        left, top, right, bottom = frame.box(step)
        return pixels[top:bottom, left:right]
