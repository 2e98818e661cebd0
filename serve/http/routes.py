"""The routes: bodies in, answers out, and an eye on clients that leave. What happens in between is service.py."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Security
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Message, Send

from panoserve.serve.http.edits import EDIT_FIELDS, edit_job
from panoserve.serve.http.endless import ENDLESS_FIELDS, STEER_FIELDS, EndlessJob, endless_job
from panoserve.serve.http.errors import ApiError
from panoserve.serve.http.fields import FIELDS, ImageJob, checked, image_job, parse_body
from panoserve.serve.http.form import FILES, form_of, parts_of
from panoserve.serve.http.logs import log_event
from panoserve.serve.http.openapi import (
    answers,
    event_stream,
    form_body,
    json_body,
    pictures,
)
from panoserve.serve.http.options import options_of
from panoserve.serve.http.pictures import MEDIA_TYPES
from panoserve.serve.http.runs import TRACE, TRACE_HEADERS
from panoserve.serve.http.service import ImageService, cancelled
from panoserve.serve.http.settings import KEEP_ALIVE_SECONDS, MAX_BODY_BYTES, STALL_SECONDS
from panoserve.serve.http.shapes import ENDLESS, ImagesAnswer, ModelAnswer, OptionsAnswer, SteerAnswer, painted

PIECE = 1 << 16  # bytes of a stream that are sent at once
CLIENT_LEFT = 499  # nobody reads it; the access log does
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")

router = APIRouter()
# vLLM checks the key before a request comes here; this only has OpenAPI say that there may be one.
KEY = Security(HTTPBearer(auto_error=False, description="the server's --api-key, if it has one"))
keyed = APIRouter(prefix="/v1/images", dependencies=[KEY])


def service_of(request: Request) -> ImageService:
    service: ImageService = request.app.state.panoserve
    return service


@keyed.post(
    "/generations",
    responses=answers(ImagesAnswer, event_stream(painted("image_generation"))),
    openapi_extra=json_body(FIELDS),
)
async def generations(request: Request) -> Response:
    """OpenAI's image generation: one panorama or several, whole or as a stream of events."""
    service = service_of(request)

    async def job() -> ImageJob:
        values = parse_body(await body_of(request))
        check_model(values.get("model"), request)
        return image_job(values, service.engine.config, service.settings.context)

    return await answer_to(request, job)


@keyed.post(
    "/edits", responses=answers(ImagesAnswer, event_stream(painted("image_edit"))), openapi_extra=form_body(EDIT_FIELDS)
)
async def edits(request: Request) -> Response:
    """OpenAI's image edit: a picture extended, or redrawn where a mask is transparent."""
    service = service_of(request)

    async def job() -> ImageJob:
        form = await form_of(request)
        try:
            given, files = parts_of(form)
            values = checked(given, EDIT_FIELDS)
            check_model(values.get("model"), request)
            image, mask = (files[name].file if name in files else None for name in FILES)
            config, context = service.engine.config, service.settings.context
            return await service.studio.run(lambda: edit_job(values, image, mask, config, context))
        finally:
            await form.close()

    return await answer_to(request, job)


@keyed.post(
    "/endless",
    response_class=Response,
    responses=answers(content=event_stream(ENDLESS)),
    openapi_extra=json_body(ENDLESS_FIELDS),
)
async def endless(request: Request) -> Response:
    """Ours: a panorama that is drawn, tile by tile, for as long as its stream is read."""
    service = service_of(request)

    async def job() -> EndlessJob:
        values = parse_body(await body_of(request), ENDLESS_FIELDS)
        check_model(values.get("model"), request)
        return endless_job(values, service.engine.config, service.settings.context)

    return await answer_to(request, job)


@keyed.post("/endless/{name}/steer", responses=answers(SteerAnswer), openapi_extra=json_body(STEER_FIELDS))
async def steer(name: str, request: Request) -> Response:
    """Ours: another prompt for an endless panorama that is being drawn."""
    service = service_of(request)
    request_id = request_id_of(request)
    try:
        place = service.endless.steer(name, parse_body(await body_of(request), STEER_FIELDS))
        response: Response = JSONResponse({"at": place})
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)
    except Exception as error:
        response = service.failure(error, request_id).response()
    response.headers["X-Request-Id"] = request_id
    return response


async def answer_to(request: Request, job_of: Callable[[], Awaitable[ImageJob | EndlessJob]]) -> Response:
    """Draw what a request asks for, whole or as a stream; whatever goes wrong becomes an answer in OpenAI's shape."""
    service = service_of(request)
    request_id = request_id_of(request)
    TRACE.set({name: request.headers[name] for name in TRACE_HEADERS if name in request.headers})
    try:
        job = await job_of()
        if isinstance(job, EndlessJob):
            response = await stream_of(service.endless_events(job, request_id))
        elif job.output.stream:
            response = await stream_of(service.events(job, request_id))
        else:
            task = asyncio.create_task(service.images(job, request_id))
            if not await finished_before_leaving(task, request):
                return Response(status_code=CLIENT_LEFT)
            response = JSONResponse(service.answer(job, task.result(), str(request.base_url).rstrip("/")))
    except ClientDisconnect:  # before all of the body was there
        return Response(status_code=CLIENT_LEFT)
    except Exception as error:
        response = service.failure(error, request_id).response()
    response.headers["X-Request-Id"] = request_id
    return response


async def stream_of(events: AsyncGenerator[dict[str, Any]]) -> Response:
    """Events as a response, once the first of them has come: from then on they are drawn for, and will be closed."""
    await anext(events)
    response = EventStream(server_sent(events), media_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold the events back
    return response


@keyed.get("/options", responses=answers(OptionsAnswer))
async def options(request: Request) -> Response:
    """What this server can be asked for: the page builds its form from it."""
    service = service_of(request)
    return JSONResponse(options_of(service.engine.config, service.settings, service.model))


@router.get("/v1/models/{name:path}", dependencies=[KEY], responses=answers(ModelAnswer))
async def model(name: str, request: Request) -> Response:
    """One of the models that vLLM's /v1/models lists, as OpenAI's clients retrieve it."""
    if not name:
        return RedirectResponse("/v1/models")
    try:
        check_model(name, request)
    except ApiError as error:
        return error.response()
    served = await request.app.state.openai_serving_models.show_available_models()
    card = next(card for card in served.data if card.id == name)
    return JSONResponse(ModelAnswer.model_validate(card, from_attributes=True).model_dump())


@router.get("/images/{name}", response_class=Response, responses=answers(content=pictures()))
async def picture(name: str, request: Request) -> Response:
    """A picture that was asked for as `url`. Outside /v1, since an <img> sends no API key: the name is the key."""
    stem, _, suffix = name.rpartition(".")
    stored = service_of(request).store.get(stem)
    if stored is None or MEDIA_TYPES.get(suffix) != stored.media_type:
        message = "no such picture; it may have expired, or made room for newer ones"
        return ApiError(404, message, code="picture_not_found").response()
    return Response(stored.content, media_type=stored.media_type, headers={"Cache-Control": "private, max-age=3600"})


router.include_router(keyed)


def request_id_of(request: Request) -> str:
    """The client's own X-Request-Id if it is a plain one, else a fresh one."""
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"img-{uuid.uuid4().hex}"


async def body_of(request: Request) -> bytes:
    """The body, at most MAX_BODY_BYTES. Raises ApiError 413 as soon as there is more, and 415 if it is not JSON.

    A browser sends other types to foreign sites without asking; JSON it asks about first, and CORS then refuses.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"Content-Type is {kind or 'missing'}, but must be application/json"
        raise ApiError(415, message, code="unsupported_media_type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", code="body_too_large")
    return bytes(body)


def check_model(model: str | None, request: Request) -> None:
    """404 for a model that is not served. The served ones are vLLM's to say (--served-model-name)."""
    served = [path.name for path in request.app.state.openai_serving_models.base_model_paths]
    if model is not None and model not in served:
        message = f"the model {json.dumps(model)} is not served here; served: {', '.join(served)}"
        raise ApiError(404, message, code="model_not_found", param="model")


async def finished_before_leaving(task: asyncio.Task[Any], request: Request) -> bool:
    """Wait for `task`; if the client leaves first, cancel it and say False."""
    leaving = asyncio.create_task(until_disconnect(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        leaving.cancel()
        if not task.done():
            await cancelled(task)


async def until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """A stream whose source is closed however the response ends: a client that leaves, or stays and takes nothing for
    STALL_SECONDS, ends the drawing. (In the latter case its connection ends as soon as it has taken what was sent.)
    """

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            for piece in pieces_of(message):
                async with asyncio.timeout(STALL_SECONDS):
                    await send(piece)

        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            try:
                await super().stream_response(send_in_time)
            except TimeoutError:
                log_event("stalled", logging.WARNING, request=self.headers.get("X-Request-Id"), seconds=STALL_SECONDS)


def pieces_of(message: Message) -> Iterator[Message]:
    """A message of a stream in pieces of at most PIECE bytes, of which a slow reader takes one after another."""
    body = message.get("body", b"")
    yield {**message, "body": body[:PIECE]} if body else message
    for start in range(PIECE, len(body), PIECE):
        yield {**message, "body": body[start : start + PIECE]}


async def server_sent(events: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[str]:
    """Events as the lines of text/event-stream.

    openai's client takes any event of a type that it does not know for a partial picture, so progress travels in
    comments, which it skips. A comment also goes out when nothing else does, for proxies that close idle connections.
    """
    waiting: asyncio.Task[dict[str, Any]] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events))
            await asyncio.wait({waiting}, timeout=KEEP_ALIVE_SECONDS)
            if not waiting.done():
                yield ": still drawing\n\n"
                continue
            try:
                event = waiting.result()
            except StopAsyncIteration:
                return
            waiting = None
            if event.get("type") == "progress":
                yield f": progress {event['rows']}/{event['of']}\n\n"
            else:
                yield f"event: {event.get('type', 'error')}\ndata: {json.dumps(event)}\n\n"
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()  # which closes `events` from inside
        else:
            await events.aclose()
