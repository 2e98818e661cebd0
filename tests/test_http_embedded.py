"""The official openai client against the real server on the embedded model: one pass over all that is served."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from http_server import Server, running_server
from openai import OpenAI
from PIL import Image

from panoserve.serve.work import Pixels

MODEL = Path(__file__).resolve().parent.parent / "assets" / "pano-mini"
CROP, KEY = 192, "sesame"
SIZE = f"{CROP}x{CROP}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("embedded") / "server.log"
    with running_server(MODEL, log, "--max-lanes", "16", "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def picture(client: OpenAI) -> bytes:
    """A crop, as PNG."""
    made = client.images.generate(prompt="a lake among mountains at noon", size=SIZE, extra_body={"seed": 5})
    assert made.data is not None and made.data[0].b64_json is not None
    return base64.b64decode(made.data[0].b64_json)


def pixels_of(content: bytes) -> Pixels:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def test_the_model_is_listed_and_a_key_is_asked_for(client: OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["pano-mini"]
    with pytest.raises(openai.AuthenticationError), OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger:
        stranger.images.generate(prompt="a lake", size=SIZE)
    with pytest.raises(openai.BadRequestError, match="did you mean guidance_scale"):
        client.images.generate(prompt="a lake", size=SIZE, extra_body={"guidance": 3})


def test_pictures_by_url_of_seeds_that_follow(client: OpenAI, picture: bytes) -> None:
    made = client.images.generate(
        prompt="a lake among mountains at noon", n=2, size=SIZE, response_format="url", extra_body={"seed": 4}
    )
    assert made.data is not None and made.usage is not None
    assert made.usage.output_tokens == 2 * (CROP // 8) ** 2
    contents = [httpx.get(str(one.url), timeout=60).content for one in made.data]
    assert contents[1] == picture and contents[0] != picture


def test_a_panorama_is_painted_while_it_is_drawn(client: OpenAI) -> None:
    stream = client.images.generate(
        prompt="a red sunset over the sea",
        size=f"{2 * CROP}x{CROP}",
        stream=True,
        partial_images=2,
        extra_body={"seed": 1, "loop": True, "prompts": [{"prompt": "a starry night over the sea", "left": 0.5}]},
    )
    kinds = [event.type for event in stream]
    assert kinds[-1] == "image_generation.completed" and "image_generation.partial_image" in kinds[:-1]


def test_a_picture_is_extended_and_keeps_its_pixels(client: OpenAI, picture: bytes) -> None:
    made = client.images.edit(
        image=[("lake.png", picture)], prompt="a lake among mountains at noon", extra_body={"seed": 2, "right": CROP}
    )
    assert made.data is not None and made.data[0].b64_json is not None
    wide = pixels_of(base64.b64decode(made.data[0].b64_json))
    assert wide.shape == (CROP, 2 * CROP, 3)
    assert np.array_equal(wide[:, :CROP], pixels_of(picture))
    assert wide[:, CROP:].std() > 5, "it is not drawn"


def test_what_a_mask_leaves_open_is_redrawn_and_nothing_else(client: OpenAI, picture: bytes) -> None:
    opacity = np.full((CROP, CROP, 4), 255, dtype=np.uint8)
    opacity[64:128, 64:128, 3] = 0
    mask = io.BytesIO()
    Image.fromarray(opacity).save(mask, "PNG")
    made = client.images.edit(
        image=("lake.png", picture), mask=("mask.png", mask.getvalue()), prompt="a forest", extra_body={"seed": 3}
    )
    assert made.data is not None and made.data[0].b64_json is not None
    changed = (pixels_of(base64.b64decode(made.data[0].b64_json)) != pixels_of(picture)).any(axis=2)
    assert not changed[opacity[..., 3] == 255].any() and changed[opacity[..., 3] == 0].mean() > 0.5


def test_an_endless_panorama_ends_at_its_limit(client: OpenAI) -> None:
    body = {"prompt": "a desert", "seed": 1, "crops": 2, "limit": 2 * CROP}
    response = client.post("/images/endless", cast_to=httpx.Response, body=body)
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in data]
    assert [events[0]["type"], events[-1]["type"]] == ["image_endless.started", "image_endless.completed"]
    assert events[-1]["width"] == 2 * CROP
    tiles = [event for event in events if event["type"] == "image_endless.tile"]
    assert sum(tile["width"] for tile in tiles) == 2 * CROP
