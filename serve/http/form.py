"""The body of POST /v1/images/edits: multipart/form-data, read within bounds, as fields and files."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from panoserve.serve.http.checks import shown
from panoserve.serve.http.errors import ApiError, bad_value
from panoserve.serve.http.fields import no_constant
from panoserve.serve.http.settings import MAX_FORM_BYTES

FILES = ("image", "mask")
MAX_FILES = 17  # as many as OpenAI takes, so that it is we who say that there is one picture too many
MAX_FIELDS = 100
# Fields whose value is a text as it stands; of all others it is JSON, since a form knows texts only.
TEXTS = {"prompt", "model", "size", "response_format", "output_format", "background", "user", "safety_identifier"}
TEXTS |= {"quality", "input_fidelity", "negative_prompt", "context"}


async def form_of(request: Request) -> FormData:
    """The form of a request; close it. Files beyond 1 MiB are on disk. Raises ApiError 400, 403, 413 or 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        message = f"Content-Type is {kind or 'missing'}, but must be multipart/form-data"
        raise ApiError(415, message, code="unsupported_media_type")
    # A browser sends forms to foreign sites without asking them; with this header it asks first, and CORS decides.
    if from_another_site(request) and "authorization" not in request.headers:
        message = "a page of another site must send an Authorization header; any will do where no API key is set"
        raise ApiError(403, message, code="cross_site")
    parser = MultiPartParser(request.headers, bounded(request), max_files=MAX_FILES, max_fields=MAX_FIELDS)
    try:
        return await parser.parse()
    except (MultiPartException, UnicodeError) as error:
        raise ApiError(400, f"the body is no valid form: {error}", code="invalid_form") from None


def from_another_site(request: Request) -> bool:
    """Whether a page that is not ours sent this. Browsers say so by a header, but not to plain http at other machines.

    There, the page's origin must be the place that was asked (so a proxy must hand on the Host that it was asked for).
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


async def bounded(request: Request) -> AsyncGenerator[bytes]:
    """The body, at most MAX_FORM_BYTES. Raises ApiError 413 as soon as there is more."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_FORM_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_FORM_BYTES} bytes", code="body_too_large", param="image")
        yield chunk


def parts_of(form: FormData) -> tuple[dict[str, Any], dict[str, UploadFile]]:
    """Fields, typed as JSON would be, those that are empty as None; and the files. Raises ApiError."""
    values: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        if name.removesuffix("[]") in FILES:  # openai's client writes image[] for a list of pictures
            name = name.removesuffix("[]")
            if value == "":
                continue
            if not isinstance(value, UploadFile):
                raise bad_value(name, f"{name} is a text, but must be a picture sent as a file")
            if name in files:
                raise bad_value(name, f"there is more than one {name}, but one picture is edited at a time")
            files[name] = value
        elif isinstance(value, UploadFile):
            raise bad_value(name, f"{name} is a file, but files are {' and '.join(FILES)} only")
        elif name in values:
            raise bad_value(name, f"{shown(name)} is given twice")
        else:
            values[name] = typed(name, value)
    return values, files


def typed(name: str, text: str) -> Any:
    """A field's value: `true`, `5` and `[...]` as in JSON; what is no JSON stays a text, for its check to refuse."""
    if text == "":
        return None  # how openai's client sends None
    if name in TEXTS:
        return text
    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return text
