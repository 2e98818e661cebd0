"""Fields of request bodies: how each is checked, and the JSON schema of what it takes (openapi.py shows it)."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from panoserve.serve.http.errors import ApiError, bad_value
from panoserve.serve.http.settings import MAX_PROMPT_CHARACTERS, MAX_PROMPTS
from panoserve.serve.request import check_text

Check = Callable[[str, Any], Any]
Schema = dict[str, Any]

SIZE = r"([0-9]{1,7})x([0-9]{1,7})"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a body. None is never an error, and never comes here.

    check: from its name and value to what the value means; raises ApiError or InvalidRequestError.
    schema: what passes, as far as a schema can say it; what depends on the model is left to check. None: nothing does.
    """

    check: Check
    schema: Schema | None

    def noted(self, note: str) -> Field:
        """The same, described in a few words."""
        return replace(self, schema={**(self.schema or {}), "description": note})


def text(most: int) -> Field:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise bad_value(name, f"{name} is {shown(value)}, but must be a string")
        if len(value) > most:
            raise bad_value(name, f"{name} has {len(value)} characters, but at most {most} are taken")
        check_text(name, value)
        return value

    return Field(check, {"type": "string", "maxLength": most})


def whole(low: int, high: int) -> Field:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise bad_value(name, f"{name} is {shown(value)}, but must be a whole number from {low} to {high}")
        return value

    return Field(check, {"type": "integer", "minimum": low, "maximum": high})


def one_of(*options: str, refused: str = "") -> Field:
    def check(name: str, value: Any) -> str:
        if value not in options:
            why = f"; {refused}" if refused else ""
            raise bad_value(name, f"{name} is {shown(value)}, but must be {' or '.join(options)}{why}")
        return str(value)

    return Field(check, {"type": "string", "enum": list(options)})


def flag() -> Field:
    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise bad_value(name, f"{name} is {shown(value)}, but must be true or false")
        return value

    return Field(check, {"type": "boolean"})


def size() -> Field:
    def check(name: str, value: Any) -> tuple[int, int] | None:
        """`1152x192` as (width, height); `auto` is None."""
        if value == "auto":
            return None
        found = re.fullmatch(SIZE, value) if isinstance(value, str) else None
        if not found:
            raise bad_value(
                name, f"{name} is {shown(value)}, but must be auto or WIDTHxHEIGHT in pixels, such as 1152x192"
            )
        return int(found[1]), int(found[2])

    return Field(check, {"type": "string", "pattern": rf"^(auto|{SIZE})$", "examples": ["auto", "1152x192"]})


def prompts_along() -> Field:
    def check(name: str, value: Any) -> list[Any]:
        """At most MAX_PROMPTS prompts with their places, whose texts are texts; PanoramaRequest checks the rest."""
        if not isinstance(value, list) or len(value) > MAX_PROMPTS:
            raise bad_value(name, f"{name} is {shown(value)}, but must be a list of at most {MAX_PROMPTS} objects")
        for part in value:
            if not isinstance(part, dict):
                continue
            if unknown := [key for key in part if key not in known]:
                raise unknown_field(unknown[0], known, name)
            if part.get("prompt") is not None:
                prompt.check(name, part["prompt"])
        return value

    prompt = text(MAX_PROMPT_CHARACTERS)
    place = {"type": "number", "description": "pixels, or with a decimal point a share of the side"}
    known = {
        "prompt": prompt.schema,
        "label": {"type": "integer", "minimum": 0},
        **dict.fromkeys(("left", "right", "top", "bottom"), place),
    }
    entry = {"type": "object", "properties": known, "additionalProperties": False}
    return Field(check, {"type": "array", "items": entry, "minItems": 1, "maxItems": MAX_PROMPTS})


def checked_later(kind: str, **schema: Any) -> Field:
    """A field that PanoramaRequest, or Sides, checks: its range may depend on the model."""
    return Field(lambda _, value: value, {"type": kind, **schema})


def refused(reason: str) -> Field:
    def check(name: str, value: Any) -> NoReturn:
        raise ApiError(400, f"{name} is not supported: {reason}", code="unsupported_parameter", param=name)

    return Field(check, None)


def unknown_field(name: str, known: Collection[str], param: str) -> ApiError:
    """400 that names the nearest of the fields that are known, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
    return ApiError(400, f"unknown field {shown(name)}{hint}", code="unknown_parameter", param=param)


def shown(value: Any) -> str:
    """A value as the client wrote it, cut to a length that an error message can bear."""
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 60 else f"{written[:57]}..."
