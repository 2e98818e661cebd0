"""The real server driven by the official, unmodified openai client: whole pictures, streams, errors, departures."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from http_server import Server
from openai import AsyncOpenAI
from PIL import Image
from tiny_folder import TINY_CONFIG, WORDS

pytestmark = pytest.mark.engine

CROP = TINY_CONFIG.grid.crop_pixels
SIZE = f"{2 * CROP}x{CROP}"
CODES = 2 * TINY_CONFIG.grid.codes
LONG = f"{200 * CROP}x{CROP}"  # takes long enough to be left alone
PROMPT = "a red sky over the sea"
SEED = {"seed": 7}


def opened(base64_text: str | None) -> Image.Image:
    assert base64_text is not None
    return Image.open(io.BytesIO(base64.b64decode(base64_text)))


def until(condition: Any, seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def all_quiet(server: Server) -> bool:
    """Nothing queued, running, or waiting, for us and for vLLM."""
    names = ("panoserve_panoramas_queued", "panoserve_panoramas_running", "panoserve_waiting_codes")
    return not any(server.metric(name) for name in (*names, "vllm:num_requests_running", "vllm:num_requests_waiting"))


@pytest.fixture(scope="module")
def drawn(server: Server) -> openai.types.ImagesResponse:
    return server.client.images.generate(prompt=PROMPT, size=SIZE, extra_body=SEED)


# ---- whole pictures ----


def test_a_picture(server: Server, drawn: openai.types.ImagesResponse) -> None:
    assert drawn.data is not None and drawn.usage is not None
    [picture] = drawn.data
    image = opened(picture.b64_json)
    assert (image.format, image.size) == ("PNG", (2 * CROP, CROP))
    assert picture.seed == 7  # type: ignore[attr-defined]
    assert picture.url is None
    assert (drawn.size, drawn.output_format, drawn.background, drawn.quality) == (SIZE, "png", "opaque", "high")
    assert abs(drawn.created - time.time()) < 600
    assert drawn._request_id is not None
    texts = TINY_CONFIG.caption_length  # the prompt is as long as the encoder takes
    assert drawn.usage.input_tokens_details.text_tokens == drawn.usage.input_tokens == texts
    assert drawn.usage.output_tokens == CODES
    assert drawn.usage.total_tokens == texts + CODES


def test_the_same_seed_draws_the_same_picture_and_another_another(
    server: Server, drawn: openai.types.ImagesResponse
) -> None:
    """With every field that the client knows, and some of ours; `n` pictures have seeds that follow each other."""
    response = server.client.images.generate(
        prompt=PROMPT,
        model=server.client.models.list().data[0].id,
        n=2,
        size=SIZE,
        response_format="b64_json",
        output_format="png",
        output_compression=100,
        background="auto",
        quality="auto",
        style="vivid",
        moderation="auto",
        user="somebody",
        safety_identifier=None,  # type: ignore[arg-type]
        extra_body={"seed": 6, "guidance_scale": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stride": 6},
    )
    assert drawn.data is not None and response.data is not None and response.usage is not None
    assert [picture.seed for picture in response.data] == [6, 7]  # type: ignore[attr-defined]
    assert response.data[1].b64_json == drawn.data[0].b64_json
    assert response.data[0].b64_json != drawn.data[0].b64_json
    assert response.usage.output_tokens == 2 * CODES
    assert response.safety_identifier == "somebody"


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_formats_and_urls(server: Server, output_format: Any) -> None:
    response = server.client.images.generate(
        prompt=PROMPT, size=SIZE, output_format=output_format, output_compression=60, response_format="url"
    )
    assert response.data is not None
    [picture] = response.data
    assert picture.b64_json is None and picture.url is not None
    assert picture.url.startswith(server.url)
    fetched = httpx.get(picture.url)
    assert fetched.headers["content-type"] == f"image/{output_format}"
    image = Image.open(io.BytesIO(fetched.content))
    assert (image.format, image.size) == (output_format.upper(), (2 * CROP, CROP))
    assert httpx.get(picture.url.replace(f".{output_format}", ".png")).status_code == 404


def test_a_prompt_that_is_too_long_is_cut_and_it_is_said(server: Server) -> None:
    response = server.client.images.generate(prompt=" ".join(WORDS * 2), size=SIZE, extra_body=SEED)
    assert response.data is not None
    assert response.data[0].prompt_truncated is True  # type: ignore[attr-defined]


def test_tall_all_around_and_with_prompts_along_the_way(server: Server) -> None:
    response = server.client.images.generate(
        prompt=PROMPT,
        size=f"{3 * CROP}x{2 * CROP}",
        extra_body={"loop": True, "row_stride": 4, "prompts": [{"prompt": "a boat", "left": 0.5}]},
    )
    assert response.data is not None
    assert opened(response.data[0].b64_json).size == (3 * CROP, 2 * CROP)


def test_the_clients_request_id_comes_back(server: Server) -> None:
    raw = server.client.images.with_raw_response.generate(
        prompt=PROMPT, size=SIZE, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert [line["outcome"] for line in server.events("panorama") if line["request"].startswith("mine-1")] == [
        "finished"
    ]
    odd = server.client.images.with_raw_response.generate(
        prompt=PROMPT, size=SIZE, extra_headers={"X-Request-Id": "a b"}
    )
    assert odd.headers["x-request-id"].startswith("img-")


# ---- streams ----


def stream(server: Server, **values: Any) -> Iterator[Any]:
    return server.client.images.generate(prompt=PROMPT, size=SIZE, stream=True, extra_body=SEED, **values)


@pytest.mark.parametrize("partial_images", [0, 1, 3])
def test_a_stream_paints_rows_as_they_complete(
    server: Server, drawn: openai.types.ImagesResponse, partial_images: int
) -> None:
    *partial, completed = list(stream(server, partial_images=partial_images))
    assert len(partial) <= partial_images
    assert bool(partial) == bool(partial_images)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert completed.type == "image_generation.completed"
    assert drawn.data is not None
    assert completed.b64_json == drawn.data[0].b64_json
    assert completed.usage.output_tokens == CODES
    for event in partial:
        image = opened(event.b64_json)
        assert image.size == (2 * CROP, CROP)
        assert (event.size, event.output_format, event.background) == (SIZE, "png", "opaque")
        below = image.crop((0, event.rows * TINY_CONFIG.downsample, *image.size))
        assert len(below.getcolors() or []) == 1, "rows that are not drawn yet are painted"
    assert [event.rows for event in partial] == sorted({event.rows for event in partial})


def test_progress_is_in_comments(server: Server) -> None:
    """Where openai's client does not trip over it."""
    body = {"prompt": PROMPT, "size": SIZE, "stream": True}
    with server.http() as http, http.stream("POST", "/v1/images/generations", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line.startswith(":")]
    side = TINY_CONFIG.grid.side
    assert lines == [f": progress {row}/{side}" for row in range(1, side + 1)]


def test_many_at_once(server: Server, drawn: openai.types.ImagesResponse) -> None:
    """Async clients, whole and streamed side by side: everybody gets the picture of their own seed."""

    async def scenario() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:

            async def whole(seed: int) -> str | None:
                response = await client.images.generate(prompt=PROMPT, size=SIZE, extra_body={"seed": seed})
                assert response.data is not None
                return response.data[0].b64_json

            async def streamed(seed: int) -> str | None:
                events = await client.images.generate(prompt=PROMPT, size=SIZE, stream=True, extra_body={"seed": seed})
                return [event.b64_json async for event in events][-1]

            calls = [draw(seed) for seed in (7, 8, 9) for draw in (whole, streamed)]
            return await asyncio.gather(*calls)

    pictures = asyncio.run(scenario())
    assert drawn.data is not None
    assert pictures[0] == pictures[1] == drawn.data[0].b64_json
    assert pictures[2] == pictures[3] and pictures[4] == pictures[5]
    assert len(set(pictures)) == 3


# ---- errors ----


def test_errors_are_the_clients_own_classes(server: Server) -> None:
    generate = server.client.images.generate
    with pytest.raises(openai.BadRequestError) as bad:
        generate(prompt=PROMPT, size="1x1")
    assert (bad.value.param, bad.value.type, bad.value.code) == ("size", "invalid_request_error", "invalid_value")
    with pytest.raises(openai.BadRequestError, match="did you mean seed") as unknown:
        generate(prompt=PROMPT, extra_body={"sed": 1})
    assert (unknown.value.param, unknown.value.code) == ("sed", "unknown_parameter")
    with pytest.raises(openai.NotFoundError) as missing:
        generate(prompt=PROMPT, model="dall-e-3")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError, match="at most") as large:
        generate(prompt=PROMPT, size=f"{CROP * 100_000}x{CROP}")
    assert (large.value.param, large.value.code) == ("size", "too_large")
    with pytest.raises(openai.BadRequestError) as streamed:
        generate(prompt=PROMPT, stream=True, n=2)
    assert streamed.value.param == "n"
    with pytest.raises(openai.NotFoundError, match="draws images"):
        server.client.completions.create(model="any", prompt="text")
    with pytest.raises(openai.NotFoundError):
        server.client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[1]", {}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-type": "multipart/form-data; boundary=x"}, 415),
        (b'"' + b"x" * (1 << 20) + b'"', {}, 413),
    ],
    ids=["cut", "bytes", "list", "plain", "form", "huge"],
)
def test_garbage(server: Server, content: bytes, headers: dict[str, str], status: int) -> None:
    with server.http() as http:
        headers = {"content-type": "application/json"} | headers
        response = http.post("/v1/images/generations", content=content, headers=headers)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "x-request-id" in response.headers


def test_other_methods_and_places(server: Server) -> None:
    with server.http() as http:
        wrong = http.get("/v1/images/generations")
        assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (
            405, "method_not_allowed", "POST",
        )  # fmt: skip
        assert http.get("/images/nothing.png").json()["error"]["code"] == "picture_not_found"
        nothing = http.get("/v1/images/nothing")
        assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "route_not_found")


def test_openapi_names_our_routes_and_no_text_route(server: Server) -> None:
    with server.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/images/endless", "/v1/models", "/health"} <= set(paths)
    assert not {"/v1/completions", "/v1/chat/completions", "/v1/embeddings"} & set(paths)


# ---- queue ----


def test_a_full_queue_answers_429_with_retry_after(server: Server) -> None:
    """Two long panoramas fill it; what is asked beyond is turned away at once, and taken again once they have gone."""
    limit = server.metric("panoserve_max_queue_codes")
    columns = int(limit / 2 / TINY_CONFIG.grid.side)
    long = {"prompt": PROMPT, "size": f"{columns * TINY_CONFIG.downsample}x{CROP}", "stream": True}
    rejected = server.metric("panoserve_rejected_requests_total")
    with server.http() as http:
        streams = [http.stream("POST", "/v1/images/generations", json=long) for _ in range(2)]
        responses = [stream.__enter__() for stream in streams]
        assert [response.status_code for response in responses] == [200, 200]
        with pytest.raises(openai.RateLimitError, match="queue is full") as caught:
            server.client.images.generate(prompt=PROMPT, size=SIZE)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120
        assert caught.value.code == "queue_full"
        for stream in streams:
            stream.__exit__(None, None, None)
    assert server.metric("panoserve_rejected_requests_total") == rejected + 1
    until(lambda: not server.metric("panoserve_waiting_codes"))
    assert server.client.images.generate(prompt=PROMPT, size=SIZE).data


# ---- clients that leave ----


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_leaving_frees_the_lanes_within_a_second_or_so(server: Server, kind: str) -> None:
    aborted = server.metric('panoserve_panoramas_total{outcome="aborted"}')
    body = {"prompt": PROMPT, "size": LONG, "stream": kind == "stream"}
    with server.http() as http:
        if kind == "stream":
            with http.stream("POST", "/v1/images/generations", json=body) as response:
                assert next(itertools.islice(response.iter_lines(), 1), None) is not None  # it draws
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/images/generations", json=body, timeout=3)
    until(lambda: server.metric('panoserve_panoramas_total{outcome="aborted"}') == aborted + 1, 10)
    server.client.images.generate(prompt=PROMPT, size=SIZE)  # gives vLLM a step to report after
    until(lambda: all_quiet(server), 20)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_many_leave_at_random_moments(server: Server) -> None:
    """Some before the first row, some while it draws, some while it decodes; nothing of them stays.

    PANOSERVE_DEPARTURES=200 is the long run of docs/log.md.
    """
    moments = random.Random(0)
    ended = server.metric("panoserve_panoramas_total")
    body = {"prompt": PROMPT, "size": SIZE, "stream": True, "partial_images": 3}
    departures = int(os.environ.get("PANOSERVE_DEPARTURES", "15"))
    with server.http() as http:
        for _ in range(departures):
            with http.stream("POST", "/v1/images/generations", json=body) as response:
                for _ in itertools.islice(response.iter_lines(), moments.randrange(30)):
                    pass
    until(lambda: server.metric("panoserve_panoramas_total") == ended + departures)
    server.client.images.generate(prompt=PROMPT, size=SIZE)
    until(lambda: all_quiet(server), 20)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert server.metric('panoserve_panoramas_total{outcome="failed"}') == 0


# ---- the rest ----


def test_health_models_and_options(server: Server) -> None:
    with server.http() as http:
        assert http.get("/health").status_code == 200
        options = http.get("/v1/images/options").json()
    assert [model.id for model in server.client.models.list()] == [options["model"]]
    retrieved = server.client.models.retrieve(options["model"])
    assert (retrieved.id, retrieved.object, retrieved.owned_by) == (options["model"], "model", "vllm")
    with pytest.raises(openai.NotFoundError, match="is not served here") as caught:
        server.client.models.retrieve("gpt/image")
    assert caught.value.code == "model_not_found"
    with server.http() as http:
        assert http.get("/v1/models/").headers["location"] == "/v1/models"
    assert options["size"] | {"max_codes": 0} == {
        "step": TINY_CONFIG.downsample,
        "crop": CROP,
        "default": f"{6 * CROP}x{CROP}",
        "max_codes": 0,
    }
    json.dumps(options)


def test_metrics_count(server: Server) -> None:
    before = {name: server.metric(name) for name in COUNTERS}
    server.client.images.generate(prompt=PROMPT, size=SIZE)
    grown = {name: server.metric(name) - before[name] for name in COUNTERS}
    assert grown['panoserve_panoramas_total{outcome="finished"}'] == 1
    assert grown["panoserve_codes_drawn_total"] == CODES
    assert grown["panoserve_first_row_seconds_count"] == grown["panoserve_panorama_seconds_count"] == 1
    assert grown["panoserve_decode_seconds_count"] == 1
    assert grown["panoserve_lanes_total"] == 3  # 16 columns in steps of 6 after the first 8
    assert grown["panoserve_forward_tokens_total"] > 0
    assert grown["panoserve_kv_slots_copied_total"] > 0


COUNTERS = (
    'panoserve_panoramas_total{outcome="finished"}',
    "panoserve_codes_drawn_total",
    "panoserve_forward_tokens_total",
    "panoserve_kv_slots_copied_total",
    "panoserve_lanes_total",
    "panoserve_first_row_seconds_count",
    "panoserve_panorama_seconds_count",
    "panoserve_decode_seconds_count",
)
