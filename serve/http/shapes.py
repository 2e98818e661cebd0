"""The shapes of answers and of events, for /openapi.json: the routes build what they send themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorFacts(Shape):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Shape):
    """OpenAI's shape of an error."""

    error: ErrorFacts


class ModelAnswer(Shape):
    """What OpenAI says of a model; vLLM's list says more."""

    id: str
    object: str
    created: int
    owned_by: str


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


class PaintedEvent(Shape):
    """What partial and whole pictures have in common."""

    type: str
    b64_json: str
    created_at: int
    background: str
    output_format: str
    quality: str
    size: str


class PartialPicture(PaintedEvent):
    """A picture of which so many rows of codes are complete; the rest is blurred."""

    partial_image_index: int
    rows: int
    of: int


class WholePicture(PaintedEvent):
    usage: Usage
    seed: int
    prompt_truncated: bool = False


class EndlessFacts(Shape):
    """The first and the last event of an endless panorama: its name, to steer it by, and how long it is by now."""

    type: str
    id: str
    seed: int
    width: int
    height: int
    created_at: int


class EndlessPiece(Shape):
    """A piece of an endless panorama, from the pixel `start` on; only tiles, which are final, are counted."""

    type: str
    start: int
    index: int = 0
    width: int
    height: int
    b64_json: str
    output_format: str


def painted(kind: str) -> dict[str, type[Shape]]:
    """The events of a picture, by their types."""
    return {f"{kind}.partial_image": PartialPicture, f"{kind}.completed": WholePicture}


ENDLESS: dict[str, type[Shape]] = {
    "image_endless.started": EndlessFacts,
    "image_endless.tile": EndlessPiece,
    "image_endless.rest": EndlessPiece,
    "image_endless.completed": EndlessFacts,
}
