"""POST /v1/images/endless without vLLM: what is sent, how it is steered, held up and stopped, what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fake_service import FakeClient, fake_app, fake_codes, running_app
from fastapi.testclient import TestClient
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message
from tiny_folder import TINY_CONFIG, write_tiny_folder
from vq_weights import TINY_VQ, filled_vq

from panoserve.configs.wire import PanoramaArgs
from panoserve.serve.http import routes
from panoserve.serve.http.endless import ENDLESS_FIELDS, endless_job
from panoserve.serve.http.fields import checked
from panoserve.vq.endless import EndlessDecoder
from panoserve.vq.images import to_pil

GRID = TINY_CONFIG.grid
CROP, SIDE, STRIDE = GRID.crop_pixels, GRID.side, GRID.default_stride
BODY = {"prompt": "a red sky", "seed": 3, "crops": 3}
ROUTE = "/v1/images/endless"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("endless") / "tiny")


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def events_of(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def drawn(folder: Path, client: FakeClient, **fields: Any) -> list[dict[str, Any]]:
    response = TestClient(fake_app(folder, client)).post(ROUTE, json=BODY | fields)
    assert response.status_code == 200, response.text
    return list(events_of(response.text.splitlines()))


def opened(event: dict[str, Any]) -> Any:
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))))
    assert pixels.shape[:2] == (event["height"], event["width"])
    return pixels


def whole_canvas(requests: list[PanoramaArgs], axis: int) -> torch.Tensor:
    """The codes of all segments, those that were given only once."""
    parts = []
    for args in requests:
        codes = torch.tensor(fake_codes(args))
        given = 0 if args.given is None else int((torch.tensor(args.given) >= 0).any(dim=1 - axis).sum())
        parts.append(codes.narrow(axis, given, codes.shape[axis] - given))
    return torch.cat(parts, dim=axis)


@pytest.mark.parametrize("direction", ["right", "down"])
def test_up_to_a_limit(folder: Path, client: FakeClient, direction: str) -> None:
    """Tiles are those of the decoder, and end exactly where the limit is."""
    limit, axis = 7 * CROP + 2, 1 if direction == "right" else 0
    started, *pieces, completed = drawn(folder, client, limit=limit, direction=direction)
    assert (started["type"], completed["type"]) == ("image_endless.started", "image_endless.completed")
    assert started["seed"] == 3 and started["id"] == completed["id"]
    along, across = ("width", "height") if axis else ("height", "width")
    assert (started[along], completed[along], completed[across]) == (0, limit, CROP)
    tiles = [event for event in pieces if event["type"] == "image_endless.tile"]
    assert [tile["index"] for tile in tiles] == list(range(len(tiles)))
    starts = np.cumsum([0, *(tile[along] for tile in tiles)])
    assert [tile["start"] for tile in tiles] == starts[:-1].tolist() and starts[-1] == limit
    picture = np.concatenate([opened(tile) for tile in tiles], axis=axis)
    codes = whole_canvas(client.requests, axis).narrow(axis, 0, -(-limit // GRID.downsample))
    decoder = EndlessDecoder(filled_vq(TINY_VQ), SIDE, axis)
    expected = [*decoder.push(codes), decoder.finish()]
    whole = np.concatenate([np.asarray(to_pil(part)) for part in expected if part is not None], axis=axis)
    assert np.array_equal(picture, whole[:, :limit] if axis else whole[:limit])
    rests = [event for event in pieces if event["type"] == "image_endless.rest"]
    assert rests and all(rest["start"] + rest[along] <= limit for rest in rests)


def test_every_segment_goes_on_from_the_last(folder: Path, client: FakeClient) -> None:
    drawn(folder, client, limit=8 * CROP)
    first, second = client.requests[:2]
    assert (first.rows, first.columns) == (SIDE, SIDE + 2 * STRIDE)
    assert second.given is not None
    overlap = SIDE - STRIDE
    assert [row[:overlap] for row in second.given] == [row[-overlap:] for row in fake_codes(first)]
    assert {code for row in second.given for code in row[overlap:]} == {-1}
    assert second.origin == (0, first.columns - overlap)


def test_progress_and_other_formats(folder: Path, client: FakeClient) -> None:
    body = BODY | {"limit": CROP, "output_format": "webp", "output_compression": 50, "crops": 1}
    response = TestClient(fake_app(folder, client)).post(ROUTE, json=body)
    assert [line for line in response.text.splitlines() if line.startswith(":")] == [
        f": progress {row}/{SIDE}" for row in range(1, SIDE + 1)
    ]
    [tile] = [event for event in events_of(response.text.splitlines()) if event["type"].endswith("tile")]
    assert tile["output_format"] == "webp"
    assert Image.open(io.BytesIO(base64.b64decode(tile["b64_json"]))).format == "WEBP"


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"loop": True}, 400, "loop", "never comes back"),
        ({"size": "100x32"}, 400, "size", "unknown field"),
        ({"n": 2}, 400, "n", "unknown field"),
        ({"width": CROP}, 400, "size", "grows in width"),
        ({"height": CROP - 4}, 400, "size", "at least one crop"),
        ({"direction": "up"}, 400, "direction", "right or down"),
        ({"crops": 0}, 400, "crops", "from 1 to"),
        ({"crops": 64}, 400, "crops", "at most 2000"),
        ({"limit": 0}, 400, "limit", "from 1 to"),
        ({"blend": 0.5}, 400, "blend", "give pixels"),
        ({"prompt": None}, 400, "prompt", "missing"),
        ({"model": "other"}, 404, "model", "not served"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_what_is_refused(folder: Path, fields: dict[str, Any], status: int, param: str, words: str) -> None:
    app = fake_app(folder, max_queue_codes=2000)
    response = TestClient(app).post(ROUTE, json=BODY | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert app.state.panoserve.backlog.codes == 0


def test_it_is_steered_and_stopped(folder: Path) -> None:
    """Over HTTP: another prompt for what is not drawn yet; leaving the stream ends the drawing at once."""
    client = FakeClient(pause=0.02)
    app = fake_app(folder, client)
    with running_app(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        with http.stream("POST", ROUTE, json=BODY) as response:
            events = events_of(response.iter_lines())
            name = next(events)["id"]
            steered = http.post(f"{ROUTE}/{name}/steer", json={"prompt": "the night"}).json()
            assert steered == {"at": 2 * STRIDE * GRID.downsample + CROP // 2 + STRIDE * GRID.downsample}
            later = http.post(f"{ROUTE}/{name}/steer", json={"prompt": "a boat", "at": 10**6}).json()
            assert later == {"at": 10**6}
            bad = http.post(f"{ROUTE}/{name}/steer", json={"label": 3})
            assert (bad.status_code, bad.json()["error"]["param"]) == (400, "label")
            while len(client.requests) < 3:
                next(events)
        deadline = time.monotonic() + 30
        while app.state.panoserve.backlog.codes or app.state.panoserve.endless._running:
            assert time.monotonic() < deadline, "the drawing goes on without a reader"
            time.sleep(0.05)
        begun = len(client.requests)
        time.sleep(0.3)
        assert len(client.requests) == begun
        gone = http.post(f"{ROUTE}/{name}/steer", json={"prompt": "the night"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "endless_not_found")
    assert [len(captions) for captions in client.captions[:2]] == [1, 1], "the second is all under the new prompt"
    assert client.captions[0] != client.captions[1]


def test_it_waits_for_room_in_the_queue(folder: Path, client: FakeClient) -> None:
    """The first segment is turned away if there is none; a later one waits until others have gone."""

    async def scenario() -> tuple[int, int]:
        service = fake_app(folder, client, max_queue_codes=300).state.panoserve
        job = endless_job(checked(BODY | {"limit": 8 * CROP}, ENDLESS_FIELDS), TINY_CONFIG, "reuse")
        events = service.endless_events(job, "one")
        assert (await anext(events))["type"] == "accepted"
        while True:  # to the end of the first segment
            event = await anext(events)
            if event["type"] == "image_endless.rest":
                break
            if event.get("rows") == SIDE:
                other = service.accept(300 - service.backlog.codes, "size")  # somebody else was quicker
        before = len(client.requests)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting := asyncio.ensure_future(anext(events))), 1)
        blocked = len(client.requests)
        other.close()
        await waiting
        assert [event["type"] async for event in events][-1] == "image_endless.completed"
        assert service.backlog.codes == 0
        return before, blocked

    before, blocked = asyncio.run(scenario())
    assert before == blocked == 1


def head_of(route: str, length: int) -> bytes:
    """Of a request whose body has that many bytes."""
    lines = (f"POST {route} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}", "", "")
    return "\r\n".join(lines).encode()


def test_a_reader_that_takes_nothing_ends_it(
    folder: Path, client: FakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection stays open, and the buffers between are full."""
    monkeypatch.setattr(routes, "STALL_SECONDS", 0.5)
    app = fake_app(folder, client)
    body = json.dumps(BODY | {"crops": 16}).encode()
    with running_app(app) as url, socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", httpx.URL(url).port))
        stalled.sendall(head_of(ROUTE, len(body)) + body)
        deadline = time.monotonic() + 120
        while "stalled" not in caplog.text or app.state.panoserve.endless._running or app.state.panoserve.backlog.codes:
            assert time.monotonic() < deadline, "it is drawn for nobody"
            time.sleep(0.1)
    assert len(client.requests) > 1


def test_a_slow_reader_is_not_a_stalled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large event takes it longer than the limit, each piece of it does not."""
    monkeypatch.setattr(routes, "STALL_SECONDS", 0.5)
    event = "x" * (20 * routes.PIECE + 1)
    received: list[bytes] = []
    more: list[bool] = []

    async def events() -> AsyncGenerator[str]:
        yield event

    async def slowly(message: Message) -> None:
        body = message.get("body", b"")
        await asyncio.sleep(0.05 * len(body) / routes.PIECE)
        received.append(body)
        more.append(message.get("more_body", False))

    asyncio.run(routes.EventStream(events()).stream_response(slowly))
    assert b"".join(received).decode() == event
    assert more == [False] + [True] * 21 + [False], "the head, the pieces, the end"


def test_a_client_that_leaves_while_it_asks_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, failures, left = fake_app(folder), [], threading.Event()
    monkeypatch.setattr(app.state.panoserve, "failure", lambda *error: failures.append(error))

    async def watched(request: Request) -> bytes:
        try:
            return await body_of(request)
        except ClientDisconnect:
            left.set()
            raise

    body_of = routes.body_of
    monkeypatch.setattr(routes, "body_of", watched)
    for route in (ROUTE, f"{ROUTE}/x/steer", "/v1/images/generations"):
        left.clear()
        with running_app(app) as url:
            with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as half:
                head = (
                    f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
                )
                half.sendall(head.encode() + b"{")
            assert left.wait(30)
    assert not failures


def test_spans_are_children_of_the_request(folder: Path, client: FakeClient) -> None:
    """What vLLM is told; it exports them (docs/serving.md)."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    test_client = TestClient(fake_app(folder, client))
    for path, body in (
        (ROUTE, BODY | {"limit": 2 * CROP}),
        ("/v1/images/generations", {"prompt": "a", "size": f"{CROP}x{CROP}"}),
        ("/v1/images/generations", {"prompt": "a", "size": f"{CROP}x{CROP}", "stream": True}),
    ):
        client.traces.clear()
        assert test_client.post(path, json=body, headers={"traceparent": parent}).status_code == 200
        assert client.traces and all(traces == {"traceparent": parent} for traces in client.traces)
        client.traces.clear()
        assert test_client.post(path, json=body).status_code == 200
        assert not any(client.traces)
