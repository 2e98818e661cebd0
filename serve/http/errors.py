"""Errors as OpenAI's clients read them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from panoserve.errors import CacheTooSmallError, InvalidRequestError, PanoramaFailedError

# PanoramaRequest's names of what a client calls otherwise.
PARAM_NAMES = {"width": "size", "height": "size", "guidance": "guidance_scale"}


class ApiError(Exception):
    """One answer that is not a picture. `code` is a short name that programs may compare."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """What the client gets, also as an event of a stream. Halves of surrogate pairs, which JSON can name and
        UTF-8 cannot hold, become question marks.
        """
        message, param = (text and text.encode("utf-8", "replace").decode() for text in (str(self), self.param))
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def bad_value(param: str, message: str) -> ApiError:
    """400: a field whose value cannot be honoured."""
    return ApiError(400, message, code="invalid_value", param=param)


def queue_full(message: str, retry_after: int) -> ApiError:
    """429: come back in `retry_after` seconds."""
    return ApiError(429, message, code="queue_full", kind="rate_limit_error", headers={"Retry-After": str(retry_after)})


def unauthorized(given: bool) -> ApiError:
    """401: the API key is missing or, if one was given, wrong."""
    problem = "the API key is not known here" if given else "there is no API key"
    message = f"{problem}; send the server's in the header `Authorization: Bearer KEY`"
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def engine_dead() -> ApiError:
    """503: this process is about to end, so that its supervisor starts it again."""
    message = "the engine process died; the server is shutting down, and its log says why"
    return ApiError(503, message, code="engine_dead", kind="server_error")


def as_api_error(error: Exception, *, engine_is_dead: bool = False) -> ApiError:
    """The one place where an exception becomes an answer. Unknown ones become a 500 that tells no internals."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        param = PARAM_NAMES.get(error.param or "", error.param)
        return ApiError(400, str(error), code="invalid_value", param=param)
    if isinstance(error, CacheTooSmallError):
        return ApiError(400, str(error), code="cache_too_small", param="context")
    if engine_is_dead:
        return engine_dead()
    if isinstance(error, PanoramaFailedError):
        return ApiError(500, str(error), code="panorama_failed", kind="server_error")
    message = f"the server failed ({type(error).__name__}); its log says why"
    return ApiError(500, message, code="internal_error", kind="server_error")
