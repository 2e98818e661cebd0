"""POST /v1/images/edits without a server: what the form says, what is drawn for it, what is refused."""

from __future__ import annotations

import asyncio
import inspect
import io
from typing import Any

import numpy as np
import pytest
from fake_form import BOUNDARY, form_request
from openai.resources.images import Images
from PIL import Image
from test_cli_extend import png_of_any_size
from tiny_folder import TINY_CONFIG

from panoserve.errors import InvalidRequestError
from panoserve.serve.extend import Extension
from panoserve.serve.http.edits import EDIT_FIELDS, SIDES, edit_job
from panoserve.serve.http.errors import ApiError, as_api_error
from panoserve.serve.http.fields import FIELDS, ImageJob, checked
from panoserve.serve.http.form import FILES, TEXTS, form_of, parts_of
from panoserve.serve.http.settings import MAX_FORM_BYTES
from panoserve.serve.redraw import Redrawing

CROP, STEP = TINY_CONFIG.grid.crop_pixels, TINY_CONFIG.downsample
WIDTH, HEIGHT = 2 * CROP + 3, CROP


def png(
    mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), hole: tuple[int, int, int, int] | None = None
) -> bytes:
    image = Image.new(mode, size, (40, 80, 120, 255)[: len(mode)])
    if hole:
        image.paste((0, 0, 0, 0), hole)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


HOLE = (CROP, 4, CROP + 9, HEIGHT)
MASK = png("RGBA", hole=HOLE)


def job(image: bytes | None = None, mask: bytes | None = None, **values: Any) -> ImageJob:
    files = [None if content is None else io.BytesIO(content) for content in (png() if image is None else image, mask)]
    fields = checked({"prompt": "a sea", "seed": 3, **values}, EDIT_FIELDS)
    return edit_job(fields, *files, TINY_CONFIG, "reuse")


def refusal(**values: Any) -> ApiError:
    with pytest.raises((ApiError, InvalidRequestError)) as caught:
        job(**values)
    return as_api_error(caught.value)


def test_every_argument_of_the_client_is_known() -> None:
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    client = set(inspect.signature(Images.edit).parameters) - own - set(FILES)
    assert client <= set(EDIT_FIELDS)
    assert set(EDIT_FIELDS) - client <= set(FIELDS) | set(SIDES)
    assert set(EDIT_FIELDS) >= TEXTS


def test_sides_extend() -> None:
    made = job(left=10, right=CROP, n=2)
    work = made.works[1]
    assert isinstance(work, Extension) and made.kind == "image_edit"
    assert made.size == f"{10 + WIDTH + CROP}x{HEIGHT}"
    assert [request.seed for request in made.requests] == [3, 4]
    assert job(right=CROP, size=f"{WIDTH + CROP}x{HEIGHT}", input_fidelity="high").works


def test_a_mask_redraws() -> None:
    for made in (job(mask=MASK), job(image=MASK), job(mask=MASK, image=MASK, left=0, size="auto")):
        [work] = made.works
        assert isinstance(work, Redrawing) and made.size == f"{WIDTH}x{HEIGHT}"
        assert np.array_equal(work.opacity == 0, np.array(Image.open(io.BytesIO(MASK)))[..., 3] == 0)


def test_a_transparent_margin_is_an_extension() -> None:
    margin = png("RGBA", hole=(0, 0, 8, HEIGHT))
    [work] = job(image=margin).works
    assert isinstance(work, Extension) and work.sides.left == 8


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        ({}, "mask", ["nothing to draw", "by left, right, up or down"]),
        ({"left": 0, "right": 0}, "mask", ["nothing to draw"]),
        ({"mask": png()}, "mask", ["nowhere transparent"]),
        ({"mask": png("RGBA", (8, 8), (0, 0, 4, 4))}, "mask", ["8x8", f"{WIDTH}x{HEIGHT}"]),
        ({"mask": b"text"}, "mask", ["PNG, JPEG or WebP"]),
        ({"image": b"", "left": 8}, "image", ["PNG, JPEG or WebP"]),
        (
            {"image": png_of_any_size(5000, 5000), "left": 8},
            "image",
            ["5000x5000", "at most 16 million"],
        ),
        ({"image": png()[:-30], "left": 8}, "image", ["cannot be read"]),
        ({"image": png("RGBA", hole=HOLE), "right": 8}, "right", ["one after the other"]),
        ({"mask": MASK, "up": 8}, "up", ["one after the other"]),
        ({"left": -8}, "left", ["-8"]),
        ({"left": "wide"}, "left", ["wide"]),
        ({"up": CROP + 1}, "up", ["at most one crop"]),
        ({"right": 8, "size": f"{WIDTH}x{HEIGHT}"}, "size", [f"{WIDTH + 8}x{HEIGHT}"]),
        ({"mask": MASK, "size": "64x64"}, "size", [f"{WIDTH}x{HEIGHT}"]),
        ({"right": 8, "prompts": [{"prompt": "a sea"}]}, "prompts", ["extended"]),
        ({"right": 2**20, "output_format": "jpeg"}, "output_format", ["65500"]),
        ({"mask": MASK, "prompt": None}, "prompt", ["missing"]),
        ({"mask": MASK, "loop": True}, "loop", ["unknown field"]),
        ({"mask": MASK, "markup": "x"}, "markup", ["with a mask"]),
        ({"mask": MASK, "stream": True, "n": 2}, "n", ["one picture"]),
        ({"mask": MASK, "rigth": 8}, "rigth", ["did you mean right"]),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_refusals_name_the_field_and_what_to_do(values: dict[str, Any], param: str, words: list[str]) -> None:
    answer = refusal(**values)
    assert (answer.status, answer.param) == (400, param)
    assert all(word in str(answer) for word in words), str(answer)


def test_a_picture_is_needed() -> None:
    with pytest.raises(ApiError, match="image is missing") as caught:
        edit_job({"prompt": "a sea"}, None, None, TINY_CONFIG, "reuse")
    assert (caught.value.status, caught.value.param) == (400, "image")


# ---- the form ----


def parsed(parts: list[tuple[str, Any]], **headers: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields and the content of the files that a form holds; a file is given as bytes."""

    async def read() -> tuple[dict[str, Any], dict[str, bytes]]:
        form = await form_of(form_request(parts, **headers))
        try:
            values, files = parts_of(form)
            return values, {name: file.file.read() for name, file in files.items()}
        finally:
            await form.close()

    return asyncio.run(read())


def test_texts_become_values() -> None:
    values, files = parsed(
        [
            ("image[]", b"picture"),
            ("mask", ""),
            ("prompt", "12"),
            ("seed", "12"),
            ("top_p", "0.5"),
            ("stream", "true"),
            ("user", ""),
            ("prompts", '[{"prompt": "a sea", "left": 0.5}]'),
            ("temperature", "NaN"),
            ("stride", "[" * 10_000),
        ]
    )
    assert files == {"image": b"picture"}
    assert values.pop("stride").startswith("[[")
    assert values == {
        "prompt": "12",
        "seed": 12,
        "top_p": 0.5,
        "stream": True,
        "user": None,
        "prompts": [{"prompt": "a sea", "left": 0.5}],
        "temperature": "NaN",
    }


@pytest.mark.parametrize(
    ("parts", "headers", "status", "param"),
    [
        ([("image", b"a"), ("image", b"b")], {}, 400, "image"),
        ([("image[]", b"a"), ("image[]", b"b")], {}, 400, "image"),
        ([("image", "a text")], {}, 400, "image"),
        ([("prompt", b"a file")], {}, 400, "prompt"),
        ([("seed", "1"), ("seed", "2")], {}, 400, "seed"),
        ([("image", b"x")] * 20, {}, 400, None),
        ([("prompt", "x" * (2 << 20))], {}, 400, None),
        ([("image", b"x" * MAX_FORM_BYTES)], {}, 413, "image"),
        ([], {"content-type": "application/json"}, 415, None),
        ([], {"content-type": "multipart/form-data"}, 400, None),
        ([("prompt", "a")], {"content-type": "multipart/form-data; boundary=other"}, 400, None),
        (
            [("prompt", "a")],
            {"content-type": f"multipart/form-data; boundary={BOUNDARY}; charset=undefined"},
            400,
            None,
        ),
        ([("prompt", "a")], {"sec-fetch-site": "cross-site"}, 403, None),
        ([("prompt", "a")], {"sec-fetch-site": "same-site", "host": "here", "origin": "http://here"}, 403, None),
        ([("prompt", "a")], {"host": "here:8000", "origin": "http://elsewhere"}, 403, None),
        ([("prompt", "a")], {"host": "here:8000", "origin": "null"}, 403, None),
    ],
    ids=[
        *("two", "list", "text", "file", "twice", "files", "long", "huge", "json", "no boundary", "other", "charset"),
        *("foreign", "another port", "foreign without https", "no origin"),
    ],
)
def test_what_is_no_good_form(
    parts: list[tuple[str, Any]], headers: dict[str, str], status: int, param: str | None
) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(parts, **headers)
    assert (caught.value.status, caught.value.param) == (status, param)


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "same-origin", "origin": "https://proxy"}, {"host": "here:80", "origin": "http://here:80"}],
)
def test_a_page_of_ours_may(headers: dict[str, str]) -> None:
    assert parsed([("prompt", "a")], **headers) == ({"prompt": "a"}, {})


def test_a_foreign_page_may_with_a_header_that_browsers_ask_about() -> None:
    headers = {"sec-fetch-site": "cross-site", "authorization": "Bearer any"}
    assert parsed([("prompt", "a")], **headers) == ({"prompt": "a"}, {})
