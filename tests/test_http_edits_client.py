"""Edits by the official openai client, over HTTP: extended, redrawn, streamed, refused. Only the engine is not real."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import openai
import pytest
from fake_service import MODEL, fake_app, running_app
from openai import OpenAI
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from test_extend import noise
from tiny_folder import TINY_CONFIG, write_tiny_folder

from panoserve.serve.http import routes
from panoserve.serve.work import Pixels

CROP, STEP = TINY_CONFIG.grid.crop_pixels, TINY_CONFIG.downsample
PIXELS = noise(2 * CROP + 3, CROP + 2)
HEIGHT, WIDTH = PIXELS.shape[:2]
PROMPT = "a red sky over the sea"


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mask() -> Pixels:
    """Transparent in the middle, in a shape that is no rectangle."""
    opacity = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    opacity[6:20, CROP : CROP + 12] = 0
    opacity[12:18, CROP + 12 : CROP + 20] = 0
    return np.dstack([np.zeros_like(PIXELS), opacity])


def opened(base64_text: str | None) -> Pixels:
    assert base64_text is not None
    return np.array(Image.open(io.BytesIO(base64.b64decode(base64_text))))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = write_tiny_folder(tmp_path_factory.mktemp("edits") / "tiny")
    app = fake_app(folder, max_queue_codes=16384)
    with running_app(app) as url, OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def redrawn(client: OpenAI) -> Any:
    return client.images.edit(
        image=("photo.png", png(PIXELS)),
        mask=("mask.png", png(mask())),
        prompt=PROMPT,
        model=MODEL,
        n=2,
        size="auto",
        quality="auto",
        background="opaque",
        input_fidelity="high",
        output_format="png",
        output_compression=100,
        response_format="b64_json",
        user="somebody",
        safety_identifier=None,  # type: ignore[arg-type]
        extra_body={
            "seed": 7,
            "guidance_scale": 2.0,
            "top_k": 0,
            "prompts": json.dumps([{"prompt": "night", "left": 0.5}]),
        },
    )


def test_a_mask_is_redrawn_and_all_else_kept(redrawn: Any) -> None:
    """Every argument that the client has, and some of ours."""
    kept = mask()[..., 3] == 255
    pictures = [opened(picture.b64_json) for picture in redrawn.data]
    for picture in pictures:
        assert np.array_equal(picture[kept], PIXELS[kept]) and not np.array_equal(picture[~kept], PIXELS[~kept])
    assert not np.array_equal(*pictures)
    assert [picture.seed for picture in redrawn.data] == [7, 8]
    assert redrawn.size == f"{WIDTH}x{HEIGHT}"
    drawn = 4 * 3 + 2 * 2  # codes of 4 pixels that the mask touches
    codes = -(-WIDTH // STEP) * -(-HEIGHT // STEP)
    assert redrawn.usage.output_tokens == 2 * drawn
    assert redrawn.usage.input_tokens_details.image_tokens == 2 * (codes - drawn)


def test_a_picture_is_extended_and_streamed(client: OpenAI) -> None:
    """A list of one picture, as image[]; both rounds; the same picture as without a stream."""
    arguments: dict[str, Any] = {
        "image": [("photo.png", png(PIXELS))],
        "prompt": PROMPT,
        "extra_body": {"left": 10, "right": 40, "up": 5, "down": 20, "seed": 3},
    }
    whole = client.images.edit(**arguments)
    picture = opened(whole.data[0].b64_json)
    assert picture.shape == (5 + HEIGHT + 20, 10 + WIDTH + 40, 3)
    assert np.array_equal(picture[5 : 5 + HEIGHT, 10 : 10 + WIDTH], PIXELS)
    *partial, completed = client.images.edit(**arguments, stream=True, partial_images=3)
    assert completed.type == "image_edit.completed" and completed.b64_json == whole.data[0].b64_json
    assert completed.usage.total_tokens == whole.usage.total_tokens
    assert partial and {event.type for event in partial} == {"image_edit.partial_image"}
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    for event in partial:
        seen = opened(event.b64_json)
        assert seen.shape == picture.shape and event.size == whole.size
        assert np.array_equal(seen[5 : 5 + HEIGHT, 10 : 10 + WIDTH], PIXELS)


def test_errors_are_the_clients_own_classes(client: OpenAI) -> None:
    edit = client.images.edit
    with pytest.raises(openai.BadRequestError, match="nothing to draw") as nothing:
        edit(image=png(PIXELS), prompt=PROMPT)
    assert (nothing.value.param, nothing.value.code) == ("mask", "missing_required_parameter")
    with pytest.raises(openai.BadRequestError) as text:
        edit(image=b"no picture", prompt=PROMPT, extra_body={"right": 8})
    assert text.value.param == "image"
    with pytest.raises(openai.BadRequestError, match="one picture is edited") as two:
        edit(image=[png(PIXELS), png(PIXELS)], prompt=PROMPT, extra_body={"right": 8})
    assert two.value.param == "image"
    with pytest.raises(openai.NotFoundError):
        edit(image=png(PIXELS), prompt=PROMPT, model="gpt-image-1")
    with pytest.raises(openai.BadRequestError, match="at most") as large:
        edit(image=png(PIXELS), prompt=PROMPT, extra_body={"right": CROP * 10_000})
    assert (large.value.param, large.value.code) == ("image", "too_large")
    with pytest.raises(openai.APIStatusError) as json_body:
        client.post("/images/edits", body={"prompt": PROMPT}, cast_to=object)
    assert (json_body.value.status_code, json_body.value.code) == (415, "unsupported_media_type")


def files_in_temporary_folders() -> list[str]:
    """Open files of this process, the server's among them, where uploads beyond 1 MiB are kept."""
    opened_files = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            opened_files.append(os.readlink(f"/proc/self/fd/{number}"))
    return [name for name in opened_files if name.startswith(tempfile.gettempdir()) and name.endswith("(deleted)")]


def test_uploads_leave_no_file_behind(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of edits that are refused, nor of clients that leave in the middle of their picture."""
    most: list[int] = []
    left: list[None] = []
    write, read_form = UploadFile.write, routes.form_of

    async def watched(self: UploadFile, data: bytes) -> None:
        await write(self, data)
        most.append(len(files_in_temporary_folders()))

    async def form_of(request: Request) -> FormData:
        try:
            return await read_form(request)
        except ClientDisconnect:
            left.append(None)
            raise

    monkeypatch.setattr(UploadFile, "write", watched)
    monkeypatch.setattr(routes, "form_of", form_of)
    before = set(files_in_temporary_folders())
    large = png(noise(1000, 600))
    assert len(large) > 1 << 20
    for _ in range(3):
        with pytest.raises(openai.BadRequestError):
            client.images.edit(image=large, prompt=PROMPT, extra_body={"right": CROP * 10_000})
    head = "POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as half:
            half.sendall(f"{head}Content-Length: {3 * len(large)}\r\n\r\n{part}".encode() + large)
    assert max(most) > len(before), "no upload was ever on disk"
    deadline = time.monotonic() + 30
    while len(left) < 5 or set(files_in_temporary_folders()) - before:
        assert time.monotonic() < deadline, "uploads stay open"
        time.sleep(0.1)
