"""What /openapi.json says of our routes: bodies from the tables of fields that check them, and the shapes of answers.

Ranges that depend on the model (strides, classes, sizes) are not in it: GET /v1/images/options has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from panoserve.serve.http.checks import Field, Schema
from panoserve.serve.http.pictures import MEDIA_TYPES
from panoserve.serve.http.shapes import ErrorAnswer, Shape

FILES = {
    "image": "the picture",
    "image[]": "the same, as openai's client calls it in a list; one picture in all",
    "mask": "transparent where something is to be drawn, of the picture's size",
}
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


def event_stream(shapes: Mapping[str, type[Shape]]) -> Schema:
    """The content of an answer that is a stream of events, each of one of these types or an error.

    The schema is that of one event, as OpenAPI 3.1 leaves open; models that are nested in a shape are those of other
    answers, so that the document has them.
    """
    template = "#/components/schemas/{model}"
    different: list[type[Shape]] = list(dict.fromkeys([*shapes.values(), ErrorAnswer]))
    bodies = [shape.model_json_schema(ref_template=template) for shape in different]
    for body in bodies:
        body.pop("$defs", None)
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": bodies}}
    event = _object({"event": {"enum": [*shapes, "error"]}, "data": data}) | {"required": ["event", "data"]}
    return {"text/event-stream": {"schema": event}}


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
