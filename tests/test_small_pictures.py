"""Pictures smaller than a crop, around the engine: pixels are cut out of the decoded crop, rows out of its rows."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import torch
from tiny_folder import TINY_CONFIG
from vq_weights import TINY_VQ, filled_vq

from panoserve import Panorama, PanoramaRequest
from panoserve.serve.drawing import Row
from panoserve.serve.engine import AsyncEngine
from panoserve.serve.request import PanoramaStats
from panoserve.vq.endless import decode_windows
from panoserve.vq.images import to_pil
from panoserve.vq.loops import decode_loop

SIDE, SCALE = TINY_CONFIG.grid_side, TINY_CONFIG.downsample
STATS = PanoramaStats(steps=1, drawn=1, forward_tokens=1, copied_slots=0, lanes=1, seconds=1.0)


def engine_of_nothing() -> Any:
    """An engine with a model folder and a tokenizer, and nothing that draws."""
    engine = AsyncEngine.__new__(AsyncEngine)
    engine.folder = SimpleNamespace(config=TINY_CONFIG)  # type: ignore[assignment]
    engine.__dict__["vq"] = filled_vq(TINY_VQ)
    return engine


def request_of(rows: int, columns: int) -> PanoramaRequest:
    return PanoramaRequest(prompt="a sea", width=columns * SCALE, height=rows * SCALE).resolve(TINY_CONFIG)


def canvas_of(request: PanoramaRequest) -> torch.Tensor:
    canvas = request.canvas(TINY_CONFIG)
    return torch.arange(canvas.codes).view(canvas.rows, canvas.columns) % TINY_VQ.codebook_size


def test_pixels_are_cut_out_of_the_decoded_crop() -> None:
    engine, request = engine_of_nothing(), request_of(3, SIDE + 5)
    canvas, top = canvas_of(request), (SIDE - 3) // 2
    drawing = SimpleNamespace(
        codes=canvas, stats=STATS, submission=SimpleNamespace(request=request, truncated=False)
    )  # fmt: skip
    panorama: Panorama = engine._panorama(drawing, decode=True)
    assert torch.equal(panorama.codes, canvas[top : top + 3])
    whole = to_pil(filled_vq(TINY_VQ).decode(canvas[None])[0])
    assert panorama.image is not None
    expected = whole.crop((0, top * SCALE, whole.width, (top + 3) * SCALE))
    assert panorama.image.tobytes() == expected.tobytes()
    drawing.submission.request = request_of(SIDE, SIDE + 5)
    panorama = engine._panorama(drawing, decode=True)
    assert panorama.canvas is None and panorama.image is not None
    assert panorama.image.tobytes() == whole.tobytes()


def test_a_panorama_of_several_prompts_is_decoded_in_windows() -> None:
    engine, columns = engine_of_nothing(), 4 * SIDE
    prompts = [{"prompt": "a hill", "left": 0.5}]
    size = {"width": columns * SCALE, "height": SIDE * SCALE}
    for loop in (False, True):
        request = PanoramaRequest(prompt="a sea", prompts=prompts, loop=loop, **size).resolve(TINY_CONFIG)
        codes = canvas_of(request)
        image = engine.picture(Panorama(request, codes, None, STATS, truncated=False))
        windows = to_pil(decode_windows(filled_vq(TINY_VQ), codes, SIDE))
        vq = filled_vq(TINY_VQ)
        whole = to_pil((decode_loop(vq, codes[None]) if loop else vq.decode(codes[None]))[0])
        assert image.tobytes() == (whole if loop else windows).tobytes() and whole.tobytes() != windows.tobytes()


def test_a_small_loop_and_small_scenes_are_decoded_as_large_ones_are() -> None:
    engine, columns = engine_of_nothing(), 4 * SIDE
    for fields in ({"loop": True}, {"prompts": [{"prompt": "a hill", "left": 0.5}]}):
        request = PanoramaRequest(prompt="a sea", width=columns * SCALE, height=3 * SCALE, **fields).resolve(
            TINY_CONFIG
        )
        canvas = canvas_of(request)
        drawing = SimpleNamespace(
            codes=canvas, stats=STATS, submission=SimpleNamespace(request=request, truncated=False)
        )
        image = engine._panorama(drawing, decode=True).image
        whole = engine.decode(canvas, "loop" in fields, scenes="prompts" in fields)
        top = (SIDE - 3) // 2 * SCALE
        assert image.tobytes() == whole.crop((0, top, whole.width, top + 3 * SCALE)).tobytes()
        plain = engine.decode(canvas)
        assert image.tobytes() != plain.crop((0, top, whole.width, top + 3 * SCALE)).tobytes()


def test_rows_are_those_of_the_picture() -> None:
    engine, request = engine_of_nothing(), request_of(3, 2)
    canvas, top, left = canvas_of(request), (SIDE - 3) // 2, (SIDE - 2) // 2
    drawing = SimpleNamespace(submission=SimpleNamespace(request=request))

    async def rows(_: Any) -> Any:
        for index, codes in enumerate(canvas):
            yield Row(index, codes)

    async def streamed() -> list[Row]:
        return [row async for row in engine.stream(request)]

    engine.prepare, engine.rows = lambda _: drawing, rows
    got = asyncio.run(streamed())
    assert [row.index for row in got] == [0, 1, 2]
    assert torch.equal(torch.stack([row.codes for row in got]), canvas[top : top + 3, left : left + 2])
