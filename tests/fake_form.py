"""A request with a form for a body, as a server hands it on: no server needed."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

BOUNDARY = "boundary-of-parts"
CHUNK = 1 << 16


def form_body(parts: list[tuple[str, Any]]) -> bytes:
    """multipart/form-data of texts and of files (bytes)."""
    body = b""
    for name, value in parts:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            head += '; filename="picture.png"\r\nContent-Type: image/png'
        body += head.encode() + b"\r\n\r\n" + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def form_request(parts: list[tuple[str, Any]], **headers: str) -> Request:
    body = form_body(parts)
    chunks = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    named = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"} | headers
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    return Request({"type": "http", "method": "POST", "path": "/v1/images/edits", "headers": raw}, receive)
