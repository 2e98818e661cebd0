"""vLLM's bare 401 as OpenAI's clients read errors. `panoserve serve` names it to vLLM (--middleware)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from panoserve.serve.http.errors import unauthorized
from panoserve.serve.http.routes import request_id_of


class OpenAIErrors:
    """ASGI middleware around vLLM's own, which checks the API key."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = False

        async def shaped(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 401:
                refused = True
                request = Request(scope)
                response = unauthorized("authorization" in request.headers).response()
                response.headers["X-Request-Id"] = request_id_of(request)
                await response(scope, receive, send)
            elif not refused:
                await send(message)

        await self.app(scope, receive, shaped)
