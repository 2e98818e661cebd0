"""From codes to files: VQ decoding, painting of unfinished pictures, encoding; all of it off the event loop.

One thread does it for all requests, so the peak is one picture's: the decoder's bound (vq/tiled.py, of which
`decode_memory_gib` is the adjustable part), 12 bytes a pixel for the decoded picture, and its encoded file.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from panoserve.serve.http.fields import ImageJob
from panoserve.serve.http.metrics import Metrics
from panoserve.vq.endless import decode_windows
from panoserve.vq.images import to_pil
from panoserve.vq.tiled import decode_tiled

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from panoserve.configs.model import ModelConfig
    from panoserve.vq.model import VQModel

T = TypeVar("T")

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
UNPAINTED = (127, 127, 127)  # rows that are not drawn yet


class Studio:
    """Decodes and encodes pictures in a thread of its own, in the order they come."""

    def __init__(self, model: ModelConfig, vq: VQModel, memory: int, metrics: Metrics) -> None:
        self._model = model
        self._vq = vq
        self._memory = memory
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panoserve-decode")

    async def picture(self, codes: torch.Tensor, job: ImageJob) -> bytes:
        """The file of a canvas [H, W] of codes. If fewer rows are given than the job asks for, the rest is grey."""
        return await self._run(lambda: self._picture(codes, job))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _picture(self, codes: torch.Tensor, job: ImageJob) -> bytes:
        begun = time.perf_counter()
        request, side = job.requests[0], self._vq.config.downsample
        if request.prompts and not request.loop:
            pixels = decode_windows(self._vq, codes, self._model.grid_side, self._memory)
        else:
            pixels = decode_tiled(self._vq, codes[None], memory=self._memory, around=request.loop)[0]
        image = to_pil(pixels)
        canvas, frame = request.canvas(self._model), request.frame(self._model)
        size = canvas.columns * side, canvas.rows * side
        if image.size != size:
            image = painted(image, size)
        image = image.crop(frame.box(side))
        content = encoded(image, job.output_format, job.output_compression)
        self._metrics.decode_seconds.observe(time.perf_counter() - begun)
        return content


def painted(top: Image, size: tuple[int, int]) -> Image:
    """A picture of `size` whose upper part is `top` and whose rest is unpainted."""
    from PIL import Image

    whole = Image.new("RGB", size, UNPAINTED)
    whole.paste(top, (0, 0))
    return whole


def encoded(image: Image, output_format: str, compression: int) -> bytes:
    """A picture as a file. `compression` is the quality of jpeg and webp; png is lossless."""
    file = io.BytesIO()
    options: dict[str, int] = {} if output_format == "png" else {"quality": compression}
    image.save(file, format=output_format.upper(), **options)
    return file.getvalue()
