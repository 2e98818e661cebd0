"""What /openapi.json says of our routes: bodies from the tables of fields that check them, and the shapes of answers.

Ranges that depend on the model (strides, classes, sizes) are not in it: GET /v1/images/options has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from panoserve.serve.http.checks import Field, Schema
from panoserve.serve.http.pictures import MEDIA_TYPES


class Shape(BaseModel):
    """The shape of an answer. It describes what the routes send, which they build themselves."""

    model_config = ConfigDict(extra="forbid")


class ErrorFacts(Shape):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Shape):
    """OpenAI's shape of an error."""

    error: ErrorFacts


class PictureAnswer(Shape):
    b64_json: str = ""
    url: str = ""
    seed: int
    prompt_truncated: bool = False


class TokenDetails(Shape):
    text_tokens: int
    image_tokens: int


class Usage(Shape):
    """Text tokens are condition rows, image tokens are codes: given ones are input, drawn ones output."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class ImagesAnswer(Shape):
    """OpenAI's ImagesResponse, with the seed beside each picture."""

    created: int
    data: list[PictureAnswer]
    background: str
    output_format: str
    quality: str
    size: str
    safety_identifier: str = ""
    usage: Usage


class OptionsAnswer(Shape):
    """Sizes, ranges and defaults; in pixels, strides in codes. What is in each depends on the model."""

    model: str
    condition: str
    classes: int
    size: dict[str, int | str]
    stride: dict[str, int]
    guidance: dict[str, bool | float]
    temperature: dict[str, float]
    top_k: dict[str, int]
    defaults: dict[str, Any]
    contexts: list[str]
    output_formats: dict[str, int]
    n: dict[str, int]


class SteerAnswer(Shape):
    """From which pixel on the new prompt holds."""

    at: int


FILES = {
    "image": "the picture",
    "image[]": "the same, as openai's client calls it in a list; one picture in all",
    "mask": "transparent where something is to be drawn, of the picture's size",
}
EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "the request cannot be served; 429: not now, see Retry-After"},
    "5XX": {"model": ErrorAnswer, "description": "the server failed; 503: its engine died, and it is about to end"},
}


def answers(shape: type[Shape] | None = None, content: Schema | None = None) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: an answer of that shape, of other content, or either; and errors."""
    good: dict[str, Any] = {"description": "what was asked for"}
    if shape is not None:
        good["model"] = shape
    if content is not None:
        good["content"] = content
    return {200: good, **ERRORS}


def pictures() -> Schema:
    """The content of an answer that is a file."""
    return {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()}


def json_body(fields: Mapping[str, Field]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is JSON.

    Fields that are refused whatever they hold are left out, as unknown ones are. All others may be null.
    """
    properties = {name: _nullable(field.schema) for name, field in fields.items() if field.schema is not None}
    return _request("application/json", _object(properties))


def form_body(fields: Mapping[str, Field]) -> dict[str, Any]:
    """`openapi_extra` of the route whose body is a form.

    Fields that are lists are one text of JSON. No field is null there; an empty one is as one that is left out.
    """
    properties: Schema = {name: {"type": "string", "format": "binary", "description": FILES[name]} for name in FILES}
    for name, field in fields.items():
        if field.schema is not None and field.schema["type"] == "array":
            note = field.schema.get("description", "")
            json_text = {"type": "string", "contentMediaType": "application/json", "contentSchema": field.schema}
            properties[name] = {**json_text, "description": f"{note}, as JSON"}
        elif field.schema is not None:
            properties[name] = field.schema
    picture = {"anyOf": [{"required": ["image"]}, {"required": ["image[]"]}]}
    return _request("multipart/form-data", _object(properties) | picture)


def _request(media_type: str, schema: Schema) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _nullable(schema: Schema) -> Schema:
    """The same or null; an enumeration must say so itself."""
    choices = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, **choices, "type": [schema["type"], "null"]}
