"""The body of POST /v1/images/generations: every field is honoured or refused by name.

Fields of OpenAI's API that ask for what this server does not do are refused; the few that only ask for more or less of
something it has one of (quality, style, moderation) are accepted without effect (docs/serving.md has the table).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from panoserve.configs.grid import MAX_SIDE, Canvas
from panoserve.configs.model import ModelConfig
from panoserve.redirect.layout import count_windows
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.http.checks import (
    Field,
    checked_later,
    flag,
    one_of,
    prompts_along,
    refused,
    shown,
    size,
    text,
    unknown_field,
    whole,
)
from panoserve.serve.http.errors import ApiError, bad_value
from panoserve.serve.http.settings import MAX_IMAGES, MAX_PROMPT_CHARACTERS, MAX_REQUEST_CROPS
from panoserve.serve.request import MAX_GUIDANCE, MAX_SEED, MAX_TEMPERATURE, PanoramaRequest
from panoserve.serve.work import FreshPicture, Work

# Longest side that the format can hold, in pixels; Pillow and libwebp refuse more.
FORMAT_SIDES = {"png": MAX_SIDE, "jpeg": 65_500, "webp": 16_383}


@dataclass(frozen=True, slots=True)
class Output:
    """What is to be made of a picture, and how it is to be sent."""

    output_format: str
    output_compression: int  # 0 to 100, as OpenAI means it: the quality of jpeg and webp
    response_format: str
    stream: bool
    partial_images: int
    safety_identifier: str | None


@dataclass(frozen=True, slots=True, eq=False)
class ImageJob:
    """A checked request. `works` are one for each picture, and differ in their seeds only."""

    works: tuple[Work, ...]
    output: Output
    kind: str = "image_generation"  # what OpenAI calls the events of a stream: image_generation or image_edit

    @property
    def requests(self) -> tuple[PanoramaRequest, ...]:
        """Resolved, one for each picture."""
        return tuple(work.request for work in self.works)

    @property
    def canvases(self) -> list[Canvas]:
        """Of all pictures."""
        return [canvas for work in self.works for canvas in work.canvases]

    @property
    def codes(self) -> int:
        """Codes of all canvases."""
        return sum(work.codes for work in self.works)

    @property
    def size(self) -> str:
        return f"{self.requests[0].width}x{self.requests[0].height}"


OPENAI_FIELDS: dict[str, Field] = {
    "prompt": text(MAX_PROMPT_CHARACTERS).noted("what to draw; empty for a class-conditional model"),
    "model": text(1000).noted("a name of /v1/models"),
    "n": whole(1, MAX_IMAGES).noted("so many pictures, with seeds seed, seed + 1, ..."),
    "size": size().noted("WIDTHxHEIGHT in pixels; auto: six crops wide, one high"),
    "response_format": one_of("b64_json", "url"),
    "output_format": one_of("png", "jpeg", "webp", refused="animations and vector graphics are not made here"),
    "output_compression": whole(0, 100).noted("the quality of jpeg and webp"),
    "background": one_of("auto", "opaque", refused="pictures have no transparency"),
    "stream": flag().noted("send events while rows are completed"),
    "partial_images": whole(0, 1000).noted("so many partial pictures, in a stream"),
    "user": text(1000).noted("repeated in the answer"),
    "safety_identifier": text(1000).noted("repeated in the answer"),
    # One quality, one style and no moderation are all there is.
    "quality": one_of("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd").noted("without effect"),
    "style": one_of("vivid", "natural").noted("without effect"),
    "moderation": one_of("auto", "low").noted("without effect"),
    "complexity": refused("there is no planning to spend computation on"),
    "frame_count": refused("this server makes still pictures"),
    "frame_duration_ms": refused("this server makes still pictures"),
    "svg": refused("this server makes no vector graphics"),
}
# Ours, at the top level of the body: the client's extra_body.
OUR_FIELDS: dict[str, Field] = {
    "label": checked_later("integer", minimum=0).noted("the class, for a class-conditional model"),
    "stride": checked_later("integer", minimum=1).noted("columns of codes that a crop adds"),
    "row_stride": checked_later("integer", minimum=1).noted("rows of codes that a crop adds"),
    "loop": flag().noted("the right edge meets the left one"),
    "prompts": prompts_along().noted("what else to draw, and where"),
    "blend": checked_later("number", minimum=0).noted("over what width prompts shade into each other"),
    "negative_prompt": text(MAX_PROMPT_CHARACTERS).noted("what guidance leads away from"),
    "seed": checked_later("integer", minimum=0, maximum=MAX_SEED).noted("same seed, same picture"),
    "guidance_scale": checked_later("number", minimum=0, maximum=MAX_GUIDANCE).noted("1 or less is off"),
    "guidance_interval": checked_later("integer", minimum=-1).noted("guide the first codes of a crop only; -1: all"),
    "temperature": checked_later("number", minimum=0, maximum=MAX_TEMPERATURE).noted("0 is greedy"),
    "top_k": checked_later("integer", minimum=0).noted("0 keeps every code"),
    "top_p": checked_later("number", exclusiveMinimum=0, maximum=1).noted("1 keeps every code"),
    "context": checked_later("string", enum=list(CONTEXTS)).noted("how given codes get their keys and values"),
}
MODE = refused("the way a panorama grows follows from its size; see also row_stride, loop, and the route endless")
FIELDS: dict[str, Field] = {**OPENAI_FIELDS, **OUR_FIELDS, "mode": MODE}
# What PanoramaRequest calls otherwise; an error's names are turned back by errors.PARAM_NAMES.
REQUEST_NAMES = {"guidance_scale": "guidance"}


def no_constant(name: str) -> NoReturn:
    """For json.loads, which takes NaN and Infinity by itself."""
    raise ValueError(f"{name} is no JSON")


def parse_body(body: bytes, fields: dict[str, Field] | None = None) -> dict[str, Any]:
    """The JSON object of a request body, fields that are null left out. Raises ApiError.

    fields: what is known, with its checks; by default FIELDS.
    """
    try:
        values = json.loads(body, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        message = f"the body is {shown(values)}, but must be a JSON object"
        raise ApiError(400, message, code="invalid_json")
    return checked(values, FIELDS if fields is None else fields)


def checked(values: dict[str, Any], fields: dict[str, Field]) -> dict[str, Any]:
    """Values whose names and kinds are right, those that are None left out. Raises ApiError."""
    for name in values:
        if name not in fields:
            raise unknown_field(name, fields, name)
    return {name: fields[name].check(name, value) for name, value in values.items() if value is not None}


def image_job(values: dict[str, Any], config: ModelConfig, context: str) -> ImageJob:
    """A parsed body as a job, every default filled in. Raises ApiError or InvalidRequestError."""
    output = output_of(values)
    width, height = values.get("size") or (None, None)
    request = replace(request_of(values, config), width=width, height=height).resolve(config, context)
    check_format(output, request)
    job = ImageJob(several(FreshPicture(request, config), values), output)
    check_crops(job.canvases, request, config, "size")
    return job


def check_crops(
    canvases: Iterable[Canvas], request: PanoramaRequest, config: ModelConfig, param: str, usual: int | None = None
) -> None:
    """Raise ApiError if canvases of a resolved request have more crops than a plan should.

    It is about a stride that is narrower than `usual` (by default the grid's), or else about `param`.
    """
    assert request.stride is not None and request.row_stride is not None
    strides = request.stride, request.row_stride
    crops = sum(count_windows(canvas, config.grid, *strides, request.loop) for canvas in canvases)
    if crops > MAX_REQUEST_CROPS:
        raise ApiError(
            400,
            f"the request asks for {crops} crops in all, but at most {MAX_REQUEST_CROPS} are taken; ask for a larger "
            "stride, a smaller size or a smaller n",
            code="too_large",
            param="stride" if min(strides) < (usual or config.grid.default_stride) else param,
        )


def several(work: Work, values: dict[str, Any]) -> tuple[Work, ...]:
    """As many pictures as are asked for, with seeds that follow each other."""
    seed = work.request.seed
    assert seed is not None
    return tuple(work.with_seed(seed + i) for i in range(values.get("n", 1)))


def output_of(values: dict[str, Any]) -> Output:
    """The output that checked fields ask for. Raises ApiError."""
    stream, partial_images = values.get("stream", False), values.get("partial_images", 0)
    output_format = values.get("output_format", "png")
    compression = values.get("output_compression", 100)
    response_format = values.get("response_format", "b64_json")
    n = values.get("n", 1)
    if partial_images and not stream:
        raise bad_value("partial_images", "partial_images needs stream=true, or there is nothing to send them on")
    if stream and n > 1:
        raise bad_value("n", f"n is {n}, but a stream carries one picture; send {n} requests, they are drawn together")
    if stream and response_format == "url":
        raise bad_value("response_format", "a stream carries its pictures itself: use b64_json, or stream=false")
    if output_format == "png" and compression != 100:
        raise bad_value("output_compression", "png loses nothing, so only 100 is possible; use jpeg or webp")
    return Output(
        output_format=output_format,
        output_compression=compression,
        response_format=response_format,
        stream=stream,
        partial_images=partial_images,
        safety_identifier=values.get("safety_identifier") or values.get("user") or None,
    )


def check_format(output: Output, request: PanoramaRequest) -> None:
    """Raise ApiError if the file's format cannot hold a resolved request's picture."""
    assert request.width is not None and request.height is not None
    most = FORMAT_SIDES[output.output_format]
    if max(request.width, request.height) > most:
        raise bad_value(
            "output_format",
            f"{output.output_format} holds at most {most} pixels a side, but the picture would be "
            f"{request.width}x{request.height}; use png",
        )


def request_of(values: dict[str, Any], config: ModelConfig) -> PanoramaRequest:
    """The panorama that the fields ask for, its size left open, as is what was left out."""
    named = {REQUEST_NAMES.get(name, name): values[name] for name in OUR_FIELDS if name in values}
    prompt = values.get("prompt")
    if config.condition == "class" and not prompt:
        prompt = None  # openai's client cannot leave it out
    elif prompt is None and "prompts" not in values:
        raise ApiError(400, "prompt is missing; say what to draw", code="missing_required_parameter", param="prompt")
    return PanoramaRequest(prompt=prompt, **named)
