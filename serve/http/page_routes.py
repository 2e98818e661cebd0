"""The page: index.html at `/`, the other files of the folder page/ at `/page/NAME`, sent as they are."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

FILES = resources.files("panoserve.serve.http") / "page"
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "txt": "text/plain"}
# Nothing from elsewhere, and no inline script; pictures are blobs, data and our own addresses, and are read as blobs.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

router = APIRouter(include_in_schema=False)


def page_file(name: str) -> Callable[[], Response]:
    """The handler that sends one file."""

    def send() -> Response:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response((FILES / name).read_bytes(), media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    return send


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


for _file in FILES.iterdir():
    router.add_api_route(path_of(_file.name), page_file(_file.name), methods=["GET"])
