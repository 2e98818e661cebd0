"""Whatever a client sends, our routes answer in OpenAI's shape and never by a 500: Hypothesis over fields and bytes.

Everything is real but the engine (fake_service.py). The fields themselves are the strategy, with values that are likely
for this model; test_http_schema.py has schemathesis do the same from the schema.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from fake_form import BOUNDARY, form_body
from fake_service import fake_app
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient as Client
from tiny_folder import TINY_CONFIG, WORDS, write_tiny_folder

from panoserve.serve.http.edits import EDIT_FIELDS, SIDES
from panoserve.serve.http.fields import FIELDS

CROP = TINY_CONFIG.grid.crop_pixels
ROUTES = ("/v1/images/generations", "/v1/images/edits")
EXAMPLES = int(os.environ.get("PANOSERVE_FUZZ_EXAMPLES", "60"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = write_tiny_folder(tmp_path_factory.mktemp("fuzz") / "tiny")
    with TestClient(fake_app(folder, max_queue_codes=600)) as client:
        yield client


def is_answer(response: Any) -> bool:
    """A picture, or an error as OpenAI's clients read it."""
    assert response.status_code < 500, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        kinds = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
        assert kinds and kinds[-1].endswith(".completed"), response.text
    elif response.status_code == 200:
        assert response.json()["data"]
    else:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
    assert response.headers["x-request-id"]
    return True


words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
# Values that a field may well have, some of them out of range; any field may be anything, too.
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "prompt": words,
    "negative_prompt": words,
    "n": st.integers(0, 3),
    "size": st.sampled_from(["auto", f"{CROP}x{CROP}", f"{3 * CROP}x{CROP}", "8x8", "4x400", "0x0", f"{CROP}x{10**6}"]),
    "stream": st.booleans(),
    "partial_images": st.integers(-1, 4),
    "response_format": st.sampled_from(["b64_json", "url"]),
    "output_format": st.sampled_from(["png", "jpeg", "webp"]),
    "output_compression": st.integers(-1, 101),
    "seed": st.integers(-1, 2**64),
    "guidance_scale": st.floats(),
    "temperature": st.floats(0, 11),
    "top_k": st.integers(-1, 40),
    "top_p": st.floats(0, 1),
    "stride": st.integers(0, 9),
    "row_stride": st.integers(0, 9),
    "loop": st.booleans(),
    "context": st.sampled_from(["reuse", "recompute"]),
    "blend": st.floats(0, 1) | st.integers(0, 200),
    "prompts": st.lists(st.fixed_dictionaries({"prompt": words}, optional={"left": st.floats(0, 1)}), max_size=3),
    **dict.fromkeys(SIDES, st.integers(0, 40)),
}


def bodies(fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A prompt, likely values of some other fields, and now and then anything in one of them."""
    likely = {name: strategy for name, strategy in LIKELY.items() if name in fields and name != "prompt"}
    good = st.fixed_dictionaries({"prompt": words}, optional=likely)
    odd = st.dictionaries(st.sampled_from(sorted(fields)) | st.text(max_size=9), anything, max_size=1)
    return st.tuples(good, odd).map(lambda pair: pair[0] | pair[1])


def written(value: Any) -> str:
    """As a form holds it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "ignore").decode()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """A small picture, opaque or with a hole, perhaps damaged; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=50))
    size = draw(st.sampled_from([(CROP, CROP), (70, 41), (5, 90), (1, 1)]))
    image = Image.new("RGBA", size, (20, 60, 90, 255))
    if draw(st.booleans()):
        image.paste((0, 0, 0, 0), (size[0] // 3, size[1] // 3, size[0], size[1] // 2 + 1))
    content = png(image)
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@FUZZ
@given(body=bodies(FIELDS))
def test_generations(client: Client, body: dict[str, Any]) -> None:
    content = json.dumps(body, ensure_ascii=True)  # NaN and lone surrogates travel as well
    assert is_answer(client.post(ROUTES[0], content=content, headers={"content-type": "application/json"}))


@FUZZ
@given(body=bodies(EDIT_FIELDS), image=pictures(), mask=st.none() | pictures())
def test_edits(client: Client, body: dict[str, Any], image: bytes, mask: bytes | None) -> None:
    parts: list[tuple[str, Any]] = [("image", image), *([] if mask is None else [("mask", mask)])]
    parts += [(name, written(value)) for name, value in body.items() if name.isprintable() and '"' not in name]
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert is_answer(client.post(ROUTES[1], content=form_body(parts), headers=headers))


@FUZZ
@given(
    route=st.sampled_from(ROUTES),
    content=st.binary(max_size=200) | st.binary(max_size=99).map(lambda b: f"--{BOUNDARY}\r\n".encode() + b),
    kind=st.sampled_from(
        ["application/json", f"multipart/form-data; boundary={BOUNDARY}", "multipart/form-data", "text/plain", ""]
    ),
)
def test_bytes(client: Client, route: str, content: bytes, kind: str) -> None:
    assert is_answer(client.post(route, content=content, headers={"content-type": kind}))
