"""The page at `/`: three files of this package, sent as they are."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
# Nothing from elsewhere, and no inline script; pictures come as blobs, data and our own addresses.
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

router = APIRouter(include_in_schema=False)


def page_file(name: str) -> Callable[[], Response]:
    """The handler that sends one file."""

    def send() -> Response:
        content = (resources.files("panoserve.serve.http") / "page" / name).read_bytes()
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response(content, media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    return send


for _path, _name in FILES.items():
    router.add_api_route(_path, page_file(_name), methods=["GET"])
