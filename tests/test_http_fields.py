"""The body of POST /v1/images/generations, without a server: what is taken, what is refused, and in which words."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from openai.resources.images import Images
from tiny_folder import TINY_CONFIG

from panoserve.configs.model import ModelConfig
from panoserve.errors import CacheTooSmallError, InvalidRequestError, PanoramaFailedError
from panoserve.serve.http.errors import ApiError, as_api_error
from panoserve.serve.http.fields import (
    FIELDS,
    OPENAI_FIELDS,
    OUR_FIELDS,
    REQUEST_NAMES,
    ImageJob,
    image_job,
    parse_body,
)
from panoserve.serve.request import MAX_SEED, PanoramaRequest

CROP = TINY_CONFIG.grid.crop_pixels
CLASS_CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=256,
    grid_side=8,
    downsample=4,
    condition="class",
    num_classes=10,
)


def job(config: ModelConfig = TINY_CONFIG, **values: Any) -> ImageJob:
    body = {"prompt": "a red sky"} | values
    return image_job(parse_body(json.dumps(body).encode()), config, "reuse")


def refusal(config: ModelConfig = TINY_CONFIG, **values: Any) -> ApiError:
    """The answer to a body that is refused."""
    with pytest.raises((ApiError, InvalidRequestError)) as caught:
        job(config, **values)
    return as_api_error(caught.value)


def test_every_argument_of_the_client_is_known() -> None:
    """openai's generate() has no argument that we would call unknown."""
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    assert set(inspect.signature(Images.generate).parameters) - own == set(OPENAI_FIELDS)


def test_our_fields_are_those_of_a_request() -> None:
    """Everything that a PanoramaRequest can be told is in reach of a client, but for tensors, and who goes first."""
    reached = {REQUEST_NAMES.get(name, name) for name in OUR_FIELDS} | {"prompt", "width", "height"}
    kept = {"features", "given", "negative_features", "part", "priority"}
    assert reached == set(PanoramaRequest.__dataclass_fields__) - kept


def test_defaults() -> None:
    drawn = job()
    [request] = drawn.requests
    assert (request.width, request.height) == (6 * CROP, CROP)
    assert (request.guidance, request.context) == (2.0, "reuse")
    assert request.seed is not None
    output = drawn.output
    assert (output.output_format, output.response_format, output.stream) == ("png", "b64_json", False)
    assert drawn.codes == 6 * TINY_CONFIG.grid.codes


def test_null_is_the_same_as_left_out() -> None:
    nothing = dict.fromkeys(name for name in FIELDS if name != "prompt")
    drawn = job(**nothing)
    assert (drawn.requests[0].width, drawn.output.output_format) == (6 * CROP, "png")


def test_our_fields_arrive() -> None:
    [request] = job(
        size=f"{3 * CROP}x{2 * CROP}",
        seed=7,
        guidance_scale=1.5,
        guidance_interval=3,
        temperature=0,
        top_k=5,
        top_p=0.5,
        stride=3,
        row_stride=2,
        loop=True,
        negative_prompt="text",
        context="recompute",
    ).requests
    assert (request.width, request.height, request.seed, request.guidance) == (3 * CROP, 2 * CROP, 7, 1.5)
    assert (request.row_stride, request.loop, request.negative_prompt) == (2, True, "text")
    assert (request.guidance_interval, request.temperature, request.top_k) == (3, 0, 5)
    assert (request.top_p, request.stride, request.context) == (0.5, 3, "recompute")


def test_prompts_along_the_way_arrive_and_can_stand_alone() -> None:
    along = [{"prompt": "a sea", "left": 0.5}]
    [request] = job(prompts=along, blend=0.1).requests
    assert request.prompts is not None and request.prompts[0].left == 0.5  # type: ignore[union-attr]
    assert request.blend == 0.1
    assert job(prompt=None, prompts=along).requests[0].prompt == "a sea"


def test_several_pictures_differ_in_their_seeds() -> None:
    assert [request.seed for request in job(n=3, seed=5).requests] == [5, 6, 7]
    assert [request.seed for request in job(n=2, seed=MAX_SEED).requests] == [MAX_SEED, 0]


def test_who_asks_is_repeated() -> None:
    assert job(user="old").output.safety_identifier == "old"
    assert job(user="old", safety_identifier="new").output.safety_identifier == "new"
    assert job(user="").output.safety_identifier is None


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        ({"size": "big"}, "size", ['"big"', "1152x192"]),
        ({"size": "\u0663\u0662x32"}, "size", ["WIDTHxHEIGHT"]),  # digits, but not ours
        ({"mode": "vertical"}, "mode", ["follows from its size", "row_stride"]),
        ({"prompts": [{"prompt": "a", "lefft": 0}]}, "prompts", ["unknown field", "did you mean left?"]),
        ({"prompts": [{"features": "a.npy"}]}, "prompts", ["unknown field", "known: "]),
        ({"size": f"{CROP + 1}x{CROP}"}, "size", ["multiple of 4", f"nearest is {CROP}"]),
        ({"size": f"{CROP}x{CROP - 5}"}, "size", [f"{CROP - 5}", "multiple of 4"]),
        ({"n": 0}, "n", ["0", "from 1 to 10"]),
        ({"n": 1.5}, "n", ["1.5", "whole number"]),
        ({"n": True}, "n", ["true"]),
        ({"n": 2, "stream": True}, "n", ["one picture"]),
        ({"stream": "yes"}, "stream", ['"yes"', "true or false"]),
        ({"stream": True, "response_format": "url"}, "response_format", ["b64_json"]),
        ({"partial_images": 2}, "partial_images", ["stream=true"]),
        ({"stream": True, "partial_images": -1}, "partial_images", ["-1"]),
        ({"response_format": "png"}, "response_format", ["b64_json or url"]),
        ({"output_format": "gif"}, "output_format", ["gif", "png or jpeg or webp"]),
        ({"output_compression": 50}, "output_compression", ["jpeg or webp"]),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression", ["from 0 to 100"]),
        ({"output_format": "webp", "size": f"16384x{CROP}"}, "output_format", ["16383", "use png"]),
        ({"background": "transparent"}, "background", ["transparency"]),
        ({"quality": "best"}, "quality", ["best"]),
        ({"svg": {"model": "x"}}, "svg", ["not supported"]),
        ({"frame_count": 3}, "frame_count", ["still pictures"]),
        ({"prompt": 3}, "prompt", ["string"]),
        ({"prompt": " "}, "prompt", ["some text"]),
        ({"prompt": None}, "prompt", ["missing"]),
        ({"prompt": "a" * 32001}, "prompt", ["32001", "32000"]),
        ({"prompt": "sky \ud83d"}, "prompt", ["surrogate"]),
        ({"seed": -1}, "seed", ["-1"]),
        ({"seed": "1"}, "seed", ["'1'"]),
        ({"guidance_scale": 1000}, "guidance_scale", ["1000"]),
        ({"temperature": "hot"}, "temperature", ["hot"]),
        ({"top_p": 0}, "top_p", ["above 0"]),
        ({"top_k": 33}, "top_k", ["32"]),
        ({"stride": 9}, "stride", ["1 to 8"]),
        ({"prompts": "a sea"}, "prompts", ["a list"]),
        ({"prompts": [{"text": "a sea"}]}, "prompts", ["text", "left"]),
        ({"prompts": [{"prompt": "sea \ud83d"}]}, "prompts", ["surrogate"]),
        ({"prompts": [{"prompt": "a sea"}] * 101}, "prompts", ["at most 100"]),
        ({"blend": "wide"}, "blend", ["wide"]),
        ({"negative_prompt": ["text"]}, "negative_prompt", ["must be a string"]),
        ({"negative_prompt": " "}, "negative_prompt", ["expected some text"]),
        ({"negative_prompt": "text", "guidance_scale": 1}, "negative_prompt", ["no effect with guidance 1"]),
        ({"temperature": 10**400}, "temperature", ["from 0 to 2"]),
        ({"blend": 10**400}, "blend", ["whole pixels from 0 to"]),
        ({"size": f"{100 * CROP}x{100 * CROP}", "stride": 1}, "stride", ["crops in all, but at most 4096"]),
        ({"size": f"{60 * CROP}x{CROP}", "stride": 1, "n": 10}, "stride", ["a smaller n"]),
        ({"row_stride": 0}, "row_stride", ["1 to 8"]),
        ({"loop": "yes"}, "loop", ["yes", "true or false"]),
        ({"context": "both"}, "context", ["reuse or recompute"]),
        ({"label": 3}, "label", ["exactly one"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_refusals_name_the_field_and_what_to_do(values: dict[str, Any], param: str, words: list[str]) -> None:
    answer = refusal(**values)
    assert (answer.status, answer.param) == (400, param)
    assert all(word in str(answer) for word in words), str(answer)
    assert answer.body == {
        "error": {"message": str(answer), "type": "invalid_request_error", "param": param, "code": answer.code}
    }


@pytest.mark.parametrize(
    ("name", "hint"), [("guidance", "guidance_scale"), ("sized", "size"), ("topk", "top_k"), ("xyzzy", "known: ")]
)
def test_unknown_fields_are_refused_with_the_nearest(name: str, hint: str) -> None:
    answer = refusal(**{name: None})
    assert (answer.status, answer.param, answer.code) == (400, name, "unknown_parameter")
    assert hint in str(answer)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"prompt"', b'{"seed": NaN}', b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"],
)
def test_what_is_no_json_object(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_long_values_are_cut_in_messages() -> None:
    assert len(str(refusal(size="9" * 10_000))) < 300


def test_class_models_take_a_label_and_an_empty_prompt() -> None:
    """openai's client cannot leave the prompt out."""
    assert job(CLASS_CONFIG, prompt="", label=3).requests[0].label == 3
    assert refusal(CLASS_CONFIG, prompt="a dog", label=3).param in ("prompt", "label")
    assert refusal(CLASS_CONFIG, prompt="").status == 400
    assert refusal(CLASS_CONFIG, prompt="", label=10).param == "label"


def test_exceptions_become_answers() -> None:
    assert as_api_error(InvalidRequestError("wide", "width")).param == "size"
    assert as_api_error(CacheTooSmallError("small")).status == 400
    assert as_api_error(PanoramaFailedError("gone")).status == 500
    assert as_api_error(PanoramaFailedError("gone"), engine_is_dead=True).status == 503
    hidden = as_api_error(KeyError("/root/secret"))
    assert hidden.status == 500 and "secret" not in str(hidden)
