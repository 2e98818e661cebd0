"""Between codes and files: VQ encoding and decoding, painting of unfinished pictures, files; all off the event loop.

One thread does it for all requests, so the peak is one picture's: the decoder's bound (vq/tiled.py, of which
`decode_memory_gib` is the adjustable part), 15 bytes a pixel for the decoded picture, and its encoded file; while a
picture is edited, up to 70 bytes a pixel of it (MAX_EDIT_PIXELS) instead of the 15.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from panoserve.serve.http.fields import Output
from panoserve.serve.http.metrics import Metrics
from panoserve.serve.work import UNPAINTED, Decoded, Pixels, Round, Work, encoder
from panoserve.vq.endless import decode_windows
from panoserve.vq.images import PNG_LEVEL, to_pil
from panoserve.vq.tiled import decode_tiled

if TYPE_CHECKING:
    import torch

    from panoserve.configs.model import ModelConfig
    from panoserve.serve.request import PanoramaRequest
    from panoserve.vq.model import VQModel

T = TypeVar("T")
Canvases = Mapping[str, "torch.Tensor"]  # int64 [H, W] codes of every request of a round: the rows that are complete

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class Studio:
    """Decodes and encodes pictures in a thread of its own, in the order they come."""

    def __init__(self, model: ModelConfig, vq: VQModel, memory: int, metrics: Metrics) -> None:
        self._model = model
        self._vq = vq
        self._memory = memory
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panoserve-decode")

    async def run(self, work: Callable[[], T]) -> T:
        """Anything that would hold the event loop up."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def begin(self, work: Work) -> Round:
        """A work's first round; one that encodes nothing does not wait for the pictures before it."""
        encode = encoder(self._vq, self._model.grid_side)
        return await self.run(lambda: work.begin(encode)) if work.encodes else work.begin(encode)

    async def preview(self, round_: Round, canvases: Canvases, output: Output) -> bytes:
        """The file of a work that is under way; what is not drawn yet is grey."""
        return await self.run(lambda: self._timed(lambda: encoded(round_.preview(self._all(round_, canvases)), output)))

    async def finish(self, round_: Round, canvases: Canvases, output: Output) -> Round | bytes:
        """What follows when a round is drawn: the next one, or the file of the whole work."""

        def finished() -> Round | bytes:
            result = round_.finish(self._all(round_, canvases))
            return result if isinstance(result, Round) else encoded(result, output)

        return await self.run(lambda: self._timed(finished))

    def _timed(self, work: Callable[[], T]) -> T:
        begun = time.perf_counter()
        result = work()
        self._metrics.decode_seconds.observe(time.perf_counter() - begun)
        return result

    def _all(self, round_: Round, canvases: Canvases) -> Decoded:
        return {name: self._decoded(request, canvases[name]) for name, request in round_.requests.items()}

    def _decoded(self, request: PanoramaRequest, codes: torch.Tensor) -> Pixels:
        """The picture of a canvas. If fewer rows are given than the request asks for, the rest is UNPAINTED."""
        canvas, frame, step = request.canvas(self._model), request.frame(self._model), self._vq.config.downsample
        pixels = np.full((canvas.rows * step, canvas.columns * step, 3), UNPAINTED, dtype=np.uint8)
        if len(codes):
            if request.prompts and not request.loop:
                picture = decode_windows(self._vq, codes, self._model.grid_side, self._memory)
            else:
                picture = decode_tiled(self._vq, codes[None], memory=self._memory, around=request.loop)[0]
            pixels[: len(codes) * step] = np.asarray(to_pil(picture))
        left, top, right, bottom = frame.box(step)
        return pixels[top:bottom, left:right]


def base64_text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def encoded(pixels: Pixels, output: Output) -> bytes:
    """A picture as a file. `output_compression` is the quality of jpeg and webp; png is lossless."""
    from PIL import Image

    file = io.BytesIO()
    png = output.output_format == "png"
    options = {"compress_level": PNG_LEVEL} if png else {"quality": output.output_compression}
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format=output.output_format.upper(), **options)
    return file.getvalue()
