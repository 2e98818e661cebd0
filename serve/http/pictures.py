"""Between codes and files: VQ encoding and decoding, painting of unfinished pictures, files; all off the event loop.

One thread does it for all requests, so the peak is that of one order: the decoder's bound (vq/tiled.py, of which
`decode_memory_gib` is the adjustable part), 15 bytes a pixel for the decoded pictures, and an encoded file; while a
picture is edited, up to 70 bytes a pixel of it (MAX_EDIT_PIXELS) instead of the 15. Where pictures are decoded in
batches (a GPU), orders that wait and fit into `decode_memory_gib` with the first one are served with it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from panoserve.serve.http.decoding import CanvasDecoder, Part
from panoserve.serve.http.fields import Output
from panoserve.serve.http.metrics import Metrics
from panoserve.serve.work import Decoded, Pixels, Round, Work, encoder
from panoserve.vq.images import PNG_LEVEL

if TYPE_CHECKING:
    import torch

    from panoserve.configs.model import ModelConfig
    from panoserve.vq.model import VQModel

T = TypeVar("T")
Canvases = Mapping[str, "torch.Tensor"]  # int64 [H, W] codes of every request of a round: the rows that are complete

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Canvases of a round that are to be decoded, and what is made of their pictures."""

    parts: dict[str, Part]
    make: Callable[[Decoded], Round | bytes]
    made: Future[Round | bytes] = field(default_factory=Future)


class Studio:
    """Decodes and encodes pictures in a thread of its own, in the order they come."""

    def __init__(self, model: ModelConfig, vq: VQModel, memory: int, metrics: Metrics) -> None:
        self._decoder = CanvasDecoder(model, vq, memory)
        self._encode = encoder(vq, model.grid_side)
        self._metrics = metrics
        self._orders: deque[Order] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panoserve-decode")

    async def run(self, work: Callable[[], T]) -> T:
        """Anything that would hold the event loop up."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def begin(self, work: Work) -> Round:
        """A work's first round; one that encodes nothing does not wait for the pictures before it."""
        if not work.encodes:
            return work.begin(self._encode)
        return await self.run(lambda: work.begin(self._encode))

    async def preview(self, round_: Round, canvases: Canvases, output: Output) -> bytes:
        """The file of a work that is under way; what is not drawn yet is grey."""
        made = await self._made(round_, canvases, lambda decoded: encoded(round_.preview(decoded), output))
        assert isinstance(made, bytes)
        return made

    async def finish(self, round_: Round, canvases: Canvases, output: Output) -> Round | bytes:
        """What follows when a round is drawn: the next one, or the file of the whole work."""

        def finished(decoded: Decoded) -> Round | bytes:
            result = round_.finish(decoded)
            return result if isinstance(result, Round) else encoded(result, output)

        return await self._made(round_, canvases, finished)

    async def _made(self, round_: Round, canvases: Canvases, make: Callable[[Decoded], Round | bytes]) -> Round | bytes:
        order = Order({name: Part(request, canvases[name]) for name, request in round_.requests.items()}, make)
        self._orders.append(order)
        self._thread.submit(self._serve)
        return await asyncio.wrap_future(order.made)

    def _serve(self) -> None:
        """Serve the order that has waited longest, unless it was served with another, and those that go with it."""
        orders = self._next()
        begun = time.perf_counter()
        try:
            pictures = iter(self._decoder.pictures([part for order in orders for part in order.parts.values()]))
        except Exception as error:
            for order in orders:
                order.made.set_exception(error)
            return
        share = (time.perf_counter() - begun) / max(1, len(orders))
        for order in orders:
            begun = time.perf_counter()
            try:
                order.made.set_result(order.make({name: next(pictures) for name in order.parts}))
            except Exception as error:
                order.made.set_exception(error)
            self._metrics.decode_seconds.observe(share + time.perf_counter() - begun)

    def _next(self) -> list[Order]:
        """The first order, and those right behind it that are decoded in one batch with it."""
        orders: list[Order] = []
        while self._orders:
            together = [part for order in (*orders, self._orders[0]) for part in order.parts.values()]
            if orders and not self._decoder.as_one(together):
                break
            order = self._orders.popleft()
            if order.made.set_running_or_notify_cancel():  # else nobody waits for it any more
                orders.append(order)
        return orders


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
