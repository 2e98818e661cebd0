"""Decode a canvas that has no end: in windows that overlap, each faded into the next.

The whole decode of a canvas takes its statistics over all of it, and attention sees all of it (vq/tiled.py). A canvas
without an end has no "all of it", so it is decoded in windows of equal length: each has statistics and attention of its
own. Windows stand at multiples of the tile length from the canvas's beginning and are longer by an overlap, over which
a window's pixels fade into the next one's. So a tile depends neither on how the codes were handed over nor on where the
canvas will end. Statistics of its own also keep a window's colours from those of a scene far away.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from panoserve.vq.model import VQModel
from panoserve.vq.tiled import DEFAULT_MEMORY, decode_tiled

TILE_CROPS = 2  # sides of a crop: a window is little longer than what the tokenizer was trained on
OVERLAP_SHARE = 2  # of a crop's side: what two windows share
FADE = 0.5  # of the overlap, in its middle: the outer pixels of a window see zeros beyond its edge


class EndlessDecoder:
    """Takes the codes of an endless canvas strip by strip, and gives its picture tile by tile.

    `axis` 1 grows to the right, 0 downwards. `tile` is the length of a tile in codes. Memory does not depend on how
    many there are.
    """

    def __init__(self, model: VQModel, side: int, axis: int = 1, first: int = 0, memory: int = DEFAULT_MEMORY) -> None:
        """side: of a crop, in codes. first: the first tile to give; the codes must then begin at `resume_at(first)`.

        memory: of a window's decode, as in `decode_tiled`.
        """
        self.model = model
        self.memory = memory
        self.axis = axis
        self.tile = TILE_CROPS * side
        self.overlap = max(1, side // OVERLAP_SHARE)
        self.done = first  # tiles before this one were given, or are not wanted
        self.begin = self.resume_at(first)  # where `codes` begins
        self.codes: Tensor | None = None  # from the window before the next tile's on: [H, n] or [n, W]
        self._window = self.begin // self.tile  # the next to decode
        self._faded: Tensor | None = None  # the last window's pixels over its overlap with the next

    def resume_at(self, first: int) -> int:
        """First column (row) of the codes from which tile `first` can be decoded as if nothing had been interrupted."""
        return max(first - 1, 0) * self.tile

    def push(self, codes: Tensor) -> Iterator[Tensor]:
        """Take the next codes [H, n] (or [n, W]); yield the tiles that they complete, float32 [3, H, W] pixels."""
        self.codes = codes if self.codes is None else torch.cat([self.codes, codes], dim=self.axis)
        while self.end >= (stop := (self._window + 1) * self.tile + self.overlap):
            tile = self._tile(self._window * self.tile, stop)
            self._window += 1
            if self._window > self.done:
                self.done = self._window
                yield tile
            begin = self.resume_at(self._window)
            self.codes = self.codes.narrow(self.axis, begin - self.begin, self.end - begin).clone()
            self.begin = begin

    def finish(self) -> Tensor | None:
        """What is left of the picture: less than a tile and an overlap, ending where the codes do; None if nothing is.

        More codes may be pushed afterwards, as if this had not been called.
        """
        start = self._window * self.tile
        return None if start == self.end else self._tile(start, self.end)

    @property
    def end(self) -> int:
        """First column (row) whose code was not pushed yet."""
        return self.begin + (0 if self.codes is None else self.codes.shape[self.axis])

    def _tile(self, start: int, stop: int) -> Tensor:
        """The picture from `start` on, of a window that ends at `stop`; all but what fades into the next window."""
        assert self.codes is not None
        first = max(self.begin, min(start, stop - self.tile - self.overlap))  # no window is shorter if it need not be
        window = self.codes.narrow(self.axis, first - self.begin, stop - first)
        scale, dim = self.model.config.downsample, self.axis + 1
        pixels = decode_tiled(self.model, window[None], memory=self.memory)[0].cpu()
        pixels = pixels.narrow(dim, (start - first) * scale, (stop - start) * scale).clone()
        if self._faded is not None:
            length = self.overlap * scale
            pixels.narrow(dim, 0, length).lerp_(self._faded, 1 - self._ramp(length))
        if stop - start < self.tile + self.overlap:  # the end of the canvas
            return pixels
        self._faded = pixels.narrow(dim, self.tile * scale, self.overlap * scale).clone()
        return pixels.narrow(dim, 0, self.tile * scale)

    def _ramp(self, length: int) -> Tensor:
        """How much of the new window shows at each of the overlap's pixels: 0 to 1, [1, 1, n] or [1, n, 1]."""
        places = (torch.arange(length) + 0.5) / length
        ramp = ((places - 0.5) / FADE + 0.5).clamp(0, 1)
        return ramp.view(1, 1, -1) if self.axis else ramp.view(1, -1, 1)


def decode_windows(model: VQModel, codes: Tensor, side: int, memory: int = DEFAULT_MEMORY) -> Tensor:
    """A canvas [H, W] that shows several scenes -> its picture, float32 [3, H, W], in windows along its longer side.

    Statistics over all of such a canvas give every scene something of the others' colours (docs/log.md). side, memory:
    as of EndlessDecoder.
    """
    decoder = EndlessDecoder(model, side, axis=int(codes.shape[1] >= codes.shape[0]), memory=memory)
    tiles = list(decoder.push(codes))
    rest = decoder.finish()
    return torch.cat(tiles if rest is None else [*tiles, rest], dim=decoder.axis + 1)
