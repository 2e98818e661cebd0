"""The parts of the HTTP front that need no server: backlog, store, pictures, log lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import TINY_CONFIG
from vq_weights import TINY_VQ, filled_vq

from panoserve.errors import EnvironmentProblem
from panoserve.serve.http import decoding
from panoserve.serve.http.backlog import MAX_WAIT, RATE_WINDOW, UNKNOWN_WAIT, Backlog
from panoserve.serve.http.errors import ApiError
from panoserve.serve.http.fields import image_job
from panoserve.serve.http.logs import JsonLines
from panoserve.serve.http.metrics import metrics
from panoserve.serve.http.pictures import Studio
from panoserve.serve.http.service import due_rows
from panoserve.serve.http.settings import HttpSettings
from panoserve.serve.http.store import PictureStore
from panoserve.serve.work import UNPAINTED, Round
from panoserve.vq.images import to_pil
from panoserve.vq.loops import decode_loop
from panoserve.vq.model import VQModel
from panoserve.vq.tiled import decode_tiled


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_backlog_counts_codes_and_gives_them_back() -> None:
    backlog = Backlog(100, Clock())
    first, second = backlog.accept(60), backlog.accept(40)
    with pytest.raises(ApiError) as caught:
        backlog.accept(1)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": str(UNKNOWN_WAIT)})
    first.drew(20)
    assert backlog.codes == 80
    first.close()  # aborted with 40 left
    second.close()
    second.close()
    assert backlog.codes == 0


def test_retry_after_follows_the_rate() -> None:
    clock = Clock()
    backlog = Backlog(1000, clock)
    ticket = backlog.accept(1000)
    for _ in range(10):
        ticket.drew(10)
        clock.now += 1
    assert backlog.rate() == pytest.approx(10)  # 100 codes in the 10 s since the first of them
    assert backlog.seconds_until(200) == 10  # 900 + 200 - 1000 codes at 10 a second
    assert backlog.seconds_until(1000) == 90
    clock.now += 100
    assert backlog.rate() == 0
    ticket.drew(1)
    clock.now += 10
    assert backlog.seconds_until(1000) == MAX_WAIT


def test_what_was_drawn_long_ago_is_forgotten() -> None:
    clock = Clock()
    ticket = (backlog := Backlog(10**6, clock)).accept(10**6)
    for _ in range(1000):
        ticket.drew(1)
        clock.now += 1
    assert len(backlog._drawn) <= RATE_WINDOW


@pytest.mark.parametrize("half", ["\ud800", "a\udfff"])
def test_half_a_surrogate_pair_in_an_error(half: str) -> None:
    body = json.loads(ApiError(400, f"{half} is wrong", code="x", param=half).response().body)
    assert body["error"]["message"] == half.encode("utf-8", "replace").decode() + " is wrong"
    assert "?" in body["error"]["param"]


def test_what_can_never_fit_is_not_told_to_wait() -> None:
    with pytest.raises(ApiError, match="at most 100") as caught:
        Backlog(100, Clock()).accept(101)
    assert caught.value.status == 400


def test_the_store_is_bounded_and_forgets() -> None:
    clock = Clock()
    store = PictureStore(max_bytes=10, seconds=60, clock=clock)
    names = [store.put(bytes([i]) * 4, "image/png") for i in range(3)]
    assert store.get(names[0]) is None  # made room
    assert [store.get(name).content for name in names[1:]] == [b"\1" * 4, b"\2" * 4]  # type: ignore[union-attr]
    clock.now = 60
    assert (store.get(names[2]), len(store), store.bytes) == (None, 0, 0)
    huge = store.put(b"x" * 50, "image/png")
    assert store.get(huge) is not None and len(store) == 1


def test_names_in_the_store_cannot_be_guessed() -> None:
    store = PictureStore(max_bytes=1 << 20, seconds=60)
    names = {store.put(b"x", "image/png") for _ in range(100)}
    assert len(names) == 100 and min(len(name) for name in names) >= 32


def draw(output_format: str, rows: int, **values: object) -> bytes:
    """The studio's file of the first `rows` rows of a canvas of random codes."""
    width = 2 * TINY_CONFIG.grid.crop_pixels
    size = (width, TINY_CONFIG.grid.crop_pixels)
    body = {"prompt": "a", "size": size, "output_format": output_format, **values}
    job = image_job(body, TINY_CONFIG, "reuse")
    studio = Studio(TINY_CONFIG, filled_vq(TINY_VQ), 1 << 30, metrics())

    async def file() -> bytes:
        round_ = await studio.begin(job.works[0])
        codes = {"picture": canvas()[:rows]}
        preview = await studio.preview(round_, codes, job.output)
        assert preview == await studio.finish(round_, codes, job.output), "a whole picture's preview is the picture"
        return preview

    return asyncio.run(file())


def canvas() -> torch.Tensor:
    side = TINY_CONFIG.grid.side
    return torch.randint(TINY_VQ.codebook_size, (side, 2 * side), generator=torch.Generator().manual_seed(0))


def test_a_drawing_does_not_wait_for_the_pictures_before_it() -> None:
    """While the one thread decodes, the next request begins all the same."""
    job = image_job({"prompt": "a"}, TINY_CONFIG, "reuse")
    studio = Studio(TINY_CONFIG, filled_vq(TINY_VQ), 1 << 30, metrics())

    async def begun() -> list[str]:
        decoded = threading.Event()
        decoding = asyncio.ensure_future(studio.run(lambda: decoded.wait(30)))
        round_ = await asyncio.wait_for(studio.begin(job.works[0]), 5)
        decoded.set()
        assert await decoding
        return list(round_.requests)

    assert asyncio.run(begun()) == ["picture"]


def test_a_png_is_the_decoded_canvas() -> None:
    image = Image.open(io.BytesIO(draw("png", TINY_CONFIG.grid.side)))
    expected = to_pil(filled_vq(TINY_VQ).decode(canvas()[None])[0])
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert image.tobytes() == expected.tobytes()


def test_a_loop_is_decoded_with_its_edges_joined() -> None:
    image = Image.open(io.BytesIO(draw("png", TINY_CONFIG.grid.side, loop=True)))
    assert image.tobytes() == to_pil(decode_loop(filled_vq(TINY_VQ), canvas()[None])[0]).tobytes()
    assert image.tobytes() != to_pil(filled_vq(TINY_VQ).decode(canvas()[None])[0]).tobytes()


def test_rows_to_come_are_grey() -> None:
    image = Image.open(io.BytesIO(draw("png", 3)))
    edge = 3 * TINY_CONFIG.downsample
    assert image.size == (2 * TINY_CONFIG.grid.crop_pixels, TINY_CONFIG.grid.crop_pixels)
    below = image.crop((0, edge, *image.size))
    assert below.getcolors() == [(below.width * below.height, UNPAINTED)]
    assert len(set(image.crop((0, 0, image.width, edge)).getdata())) > 2


def test_a_picture_smaller_than_a_crop_is_cut_out_of_it() -> None:
    """Also while it is drawn: rows above it count, and what is not drawn yet is grey."""
    crop, side = TINY_CONFIG.grid.crop_pixels, TINY_CONFIG.grid.side
    small = {"size": (2 * crop, crop // 2)}
    image = Image.open(io.BytesIO(draw("png", side, **small)))
    whole = to_pil(filled_vq(TINY_VQ).decode(canvas()[None])[0])
    assert image.tobytes() == whole.crop((0, crop // 4, 2 * crop, 3 * crop // 4)).tobytes()
    begun = Image.open(io.BytesIO(draw("png", side // 2, **small)))
    below = begun.crop((0, crop // 4, *begun.size))
    assert begun.size == image.size and below.getcolors() == [(below.width * below.height, UNPAINTED)]
    assert len(set(begun.crop((0, 0, begun.width, crop // 4)).getdata())) > 2


def test_compression_is_the_quality_of_lossy_formats() -> None:
    for output_format in ("jpeg", "webp"):
        small, large = (draw(output_format, TINY_CONFIG.grid.side, output_compression=q) for q in (5, 95))
        assert len(small) < len(large)
        assert Image.open(io.BytesIO(small)).format == output_format.upper()


@pytest.mark.parametrize(
    ("rows", "partial_images", "marks"), [(8, 0, []), (8, 1, [4]), (8, 3, [2, 4, 6]), (2, 3, [1]), (1, 3, [])]
)
def test_partial_pictures_are_spread_evenly(rows: int, partial_images: int, marks: list[int]) -> None:
    assert due_rows(rows, partial_images) == marks


def test_log_lines_are_json() -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "panorama", None, None)
    record.fields = {"request": 'a "b"\n', "seconds": 1.5}
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line) | {"time": ""} == {
        "time": "",
        "level": "INFO",
        "event": "panorama",
        "request": 'a "b"\n',
        "seconds": 1.5,
    }


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(EnvironmentProblem, match="--max-queue-codes is 0"):
        HttpSettings(max_queue_codes=0)


def test_pictures_of_one_kind_that_wait_are_decoded_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where as many go together as fit into the memory; each is the picture that it is alone."""
    monkeypatch.setattr(decoding, "decodes_at_once", lambda *_: 3)
    batches: list[int] = []

    def counted(decode: Any) -> Any:
        def run(vq: VQModel, codes: torch.Tensor, **options: Any) -> torch.Tensor:
            batches.append(len(codes))
            pictures: torch.Tensor = decode(vq, codes, **options)
            return pictures

        return run

    monkeypatch.setattr(decoding, "decode_tiled", counted(decode_tiled))
    monkeypatch.setattr(decoding, "decode_loop", counted(decode_loop))
    crop = TINY_CONFIG.grid.crop_pixels
    plain, loop = ({"prompt": "a", "size": (2 * crop, crop), **more} for more in ({}, {"loop": True}))
    jobs = [image_job(body, TINY_CONFIG, "reuse") for body in [plain] * 5 + [loop, plain]]
    generator = torch.Generator().manual_seed(0)
    canvases = [torch.randint(TINY_VQ.codebook_size, canvas().shape, generator=generator) for _ in jobs]
    studio = Studio(TINY_CONFIG, filled_vq(TINY_VQ), 1 << 30, metrics())

    async def files() -> list[bytes | Round]:
        free = threading.Event()
        holding = asyncio.ensure_future(studio.run(lambda: free.wait(30)))
        rounds = [await studio.begin(job.works[0]) for job in jobs]
        waiting = [
            asyncio.ensure_future(studio.finish(round_, {"picture": codes}, job.output))
            for round_, codes, job in zip(rounds, canvases, jobs, strict=True)
        ]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0.01)
        free.set()
        assert await holding
        return [await file for index, file in enumerate(waiting) if index != 1]

    made = asyncio.run(files())
    assert batches == [3, 1, 1, 1], "the first three that are still wanted, the fifth, the loop, the last"
    vq = filled_vq(TINY_VQ)
    kept = [(job, codes) for index, (job, codes) in enumerate(zip(jobs, canvases, strict=True)) if index != 1]
    for file, (job, codes) in zip(made, kept, strict=True):
        assert isinstance(file, bytes)
        alone = np.asarray(to_pil((decode_loop if job.works[0].request.loop else decode_tiled)(vq, codes[None])[0]))
        together = np.asarray(Image.open(io.BytesIO(file)))
        assert np.abs(together.astype(int) - alone).max() <= 1


def test_a_batch_that_cannot_be_decoded_fails_each_of_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(decoding, "decode_tiled", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        draw("png", TINY_CONFIG.grid.side)
