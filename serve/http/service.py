"""Draw image jobs: accepted by the backlog, prepared and decoded in threads, counted, aborted when asked to."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from panoserve.serve.engine import AsyncEngine
from panoserve.serve.http.backlog import Backlog, Ticket
from panoserve.serve.http.errors import ApiError, as_api_error, engine_dead
from panoserve.serve.http.fields import ImageJob
from panoserve.serve.http.logs import log_event
from panoserve.serve.http.metrics import metrics
from panoserve.serve.http.pictures import MEDIA_TYPES, Studio
from panoserve.serve.http.settings import HttpSettings
from panoserve.serve.http.store import PictureStore
from panoserve.serve.request import PanoramaRequest

if TYPE_CHECKING:
    import torch
    from vllm.v1.engine.async_llm import AsyncLLM

    from panoserve.serve.drawing import Drawing
    from panoserve.serve.folder import ModelFolder

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn panorama and its file."""

    drawing: Drawing
    content: bytes


class ImageService:
    """What the routes call. Belongs to one event loop."""

    def __init__(self, client: AsyncLLM, folder: ModelFolder, settings: HttpSettings, model: str) -> None:
        """Over vLLM's engine. Loads VQ tokenizer and text encoder; raises ModelFolderError if there is no vq/."""
        self.client = client
        self.engine = AsyncEngine.over(client, folder, settings.context)
        self.settings = settings
        self.model = model
        self.metrics = metrics()
        self.backlog = Backlog(settings.max_queue_codes)
        self.store = PictureStore(max_bytes=int(settings.url_mib * MIB), seconds=settings.url_minutes * 60)
        self.studio = Studio(self.engine.config, self.engine.vq, int(settings.decode_memory_gib * GIB), self.metrics)
        # Encoding a prompt is one short forward pass; a thread of its own keeps it from waiting for a decode.
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panoserve-prepare")
        if folder.has_text_encoder:
            self.engine.prepare(PanoramaRequest(prompt="load the text encoder now, not with the first request"))
        self.metrics.max_codes.set(settings.max_queue_codes)
        self.metrics.waiting_codes.set_function(lambda: self.backlog.codes)

    # ---- whole pictures ----

    async def images(self, job: ImageJob, request_id: str) -> list[Drawn]:
        """Draw all pictures of a job at once. Cancelling the call aborts them and frees their lanes."""
        ticket = self._accept(job)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._image(request, job, ticket, f"{request_id}-{i}"))
                    for i, request in enumerate(job.requests)
                ]
            return [task.result() for task in tasks]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the first failure cancelled the others
        finally:
            ticket.close()

    async def _image(self, request: PanoramaRequest, job: ImageJob, ticket: Ticket, request_id: str) -> Drawn:
        run = _Run(self, request, ticket, request_id)
        with run:
            async with aclosing(run.rows()) as rows:
                async for _ in rows:
                    pass
            content = await self.studio.picture(run.codes, job)
        return Drawn(run.drawing, content)

    # ---- streams ----

    async def events(self, job: ImageJob, request_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The events of one streamed picture, as openai's client reads them; closing the iterator aborts the drawing.

        The first event is `accepted`, and only before it is ApiError raised; later failures become an event. A partial
        picture comes whenever a further (partial_images + 1)th of the rows is complete; while one is painted the
        drawing goes on, so that a fast drawing sends fewer of them. `progress` events say how many rows are complete.
        """
        ticket = self._accept(job)
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=2)  # a slow reader holds painting up
        task = asyncio.create_task(self._paint(job, ticket, request_id, events))
        task.add_done_callback(lambda _: ticket.close())  # even if it is cancelled before it has begun
        try:
            yield {"type": "accepted"}
            while (event := await events.get()) is not None:
                yield event
        finally:
            # A task of its own: cancelling it needs no await, so it works while this generator is being cancelled.
            task.cancel()

    async def _paint(
        self, job: ImageJob, ticket: Ticket, request_id: str, events: asyncio.Queue[dict[str, Any] | None]
    ) -> None:
        try:
            run = _Run(self, job.requests[0], ticket, request_id)
            with run:
                marks = due_rows(run.canvas_rows, job.partial_images)
                index = 0
                async with aclosing(run.rows()) as rows:
                    async for done in rows:
                        await events.put({"type": "progress", "rows": done, "of": run.canvas_rows})
                        if not marks or done < marks[0]:
                            continue
                        codes = run.codes  # rows that came while a picture was painted are in it already
                        if len(codes) == run.canvas_rows:
                            continue
                        marks = [mark for mark in marks if mark > len(codes)]
                        content = await self.studio.picture(codes, job)
                        head = self._event_head("image_generation.partial_image", job, content)
                        place = {"partial_image_index": index, "rows": len(codes), "of": run.canvas_rows}
                        await events.put(head | place)
                        index += 1
                content = await self.studio.picture(run.codes, job)
            head = self._event_head("image_generation.completed", job, content)
            await events.put({**head, "usage": usage([run.drawing]), **self.facts(run.drawing)})
        except Exception as error:
            await events.put(self.failure(error, request_id).body)
        await events.put(None)

    def _event_head(self, kind: str, job: ImageJob, content: bytes) -> dict[str, Any]:
        return {"type": kind, "b64_json": base64_text(content), "created_at": int(time.time()), **described(job)}

    # ---- shared ----

    def _accept(self, job: ImageJob) -> Ticket:
        if self.dead:
            raise engine_dead()
        try:
            return self.backlog.accept(job.codes(self.engine.config))
        except ApiError as error:
            if error.status == 429:
                self.metrics.rejected.inc()
            raise

    @property
    def dead(self) -> bool:
        """Whether vLLM's engine process has died; vLLM then ends this process within seconds."""
        return bool(self.client.errored)

    def failure(self, error: Exception, request_id: str) -> ApiError:
        """What the client is told of an exception; what it is not told goes to the log."""
        answer = as_api_error(error, engine_is_dead=self.dead)
        if answer.status >= 500:
            log_event("error", logging.ERROR, request=request_id, status=answer.status, exception=repr(error))
        return answer

    async def prepare(self, request: PanoramaRequest) -> Drawing:
        return await asyncio.get_running_loop().run_in_executor(self._preparing, self.engine.prepare, request)

    @staticmethod
    def facts(drawing: Drawing) -> dict[str, Any]:
        """What we add to each picture: the seed that draws it again, and whether the prompt was cut."""
        submission = drawing.submission
        return {"seed": submission.request.seed} | ({"prompt_truncated": True} if submission.truncated else {})

    def answer(self, job: ImageJob, drawn: list[Drawn], base_url: str) -> dict[str, Any]:
        """The body of a 200, as openai's ImagesResponse, with `seed` beside each picture."""
        data: list[dict[str, Any]] = []
        for one in drawn:
            if job.response_format == "url":
                name = self.store.put(one.content, MEDIA_TYPES[job.output_format])
                picture = {"url": f"{base_url}/images/{name}.{job.output_format}"}
            else:
                picture = {"b64_json": base64_text(one.content)}
            data.append(picture | self.facts(one.drawing))
        safety = {"safety_identifier": job.safety_identifier} if job.safety_identifier else {}
        drawings = [one.drawing for one in drawn]
        return {"created": int(time.time()), "data": data, **described(job), **safety, "usage": usage(drawings)}


class _Run:
    """One panorama from acceptance to its end, as the metrics and the log see it."""

    def __init__(self, service: ImageService, request: PanoramaRequest, ticket: Ticket, request_id: str) -> None:
        self._service = service
        self._request = request
        self._ticket = ticket
        self._id = request_id
        self._begun = time.perf_counter()
        self._gauge = service.metrics.queued
        self._first_row: float | None = None
        self.canvas_rows = request.canvas(service.engine.config).rows

    def __enter__(self) -> None:
        self._gauge.inc()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._gauge.dec()
        stopped = kind is not None and not issubclass(kind, Exception)  # CancelledError, GeneratorExit
        outcome = "aborted" if stopped else "failed" if kind else "finished"
        seconds = time.perf_counter() - self._begun
        metrics = self._service.metrics
        metrics.ended.labels(outcome).inc()
        facts: dict[str, Any] = {"size": f"{self._request.width}x{self._request.height}", "seed": self._request.seed}
        if outcome == "finished":
            stats = self.drawing.stats
            assert stats is not None
            metrics.panorama_seconds.observe(seconds)
            metrics.forward_tokens.inc(stats.forward_tokens)
            metrics.copied_slots.inc(stats.copied_slots)
            metrics.lanes.inc(stats.lanes)
            facts |= {"codes": stats.drawn, "lanes": stats.lanes, "steps": stats.steps}
        first = None if self._first_row is None else round(self._first_row, 3)
        log_event("panorama", request=self._id, outcome=outcome, seconds=round(seconds, 3), first_row=first, **facts)

    async def rows(self) -> AsyncGenerator[int]:
        """Draw; yields how many rows are complete each time that one is."""
        service = self._service
        self.drawing = await service.prepare(self._request)
        async with aclosing(service.engine.rows(self.drawing, self._id)) as rows:
            async for row in rows:
                self._ticket.drew(len(row.codes))
                service.metrics.codes.inc(len(row.codes))
                if self._first_row is None:
                    self._first_row = time.perf_counter() - self._begun
                    service.metrics.first_row_seconds.observe(self._first_row)
                    self._gauge.dec()
                    self._gauge = service.metrics.running
                    self._gauge.inc()
                yield row.index + 1

    @property
    def codes(self) -> torch.Tensor:
        """The rows that are complete, int64 [rows, W]."""
        return self.drawing.codes


def due_rows(rows: int, partial_images: int) -> list[int]:
    """After how many rows a partial picture is due: evenly spread, none for the whole picture."""
    marks = {rows * (i + 1) // (partial_images + 1) for i in range(partial_images)}
    return sorted(mark for mark in marks if 0 < mark < rows)


def described(job: ImageJob) -> dict[str, str]:
    """What OpenAI repeats with every picture."""
    return {"background": "opaque", "output_format": job.output_format, "quality": "high", "size": job.size}


def usage(drawings: list[Drawing]) -> dict[str, Any]:
    """Counts in OpenAI's terms: text tokens are condition rows, image tokens are codes."""
    texts = 0
    for drawing in drawings:
        captions = drawing.submission.prompt.get("multi_modal_data", {}).get("caption", [])
        texts += sum(map(len, captions))
    codes = sum(drawing.canvas.codes for drawing in drawings)
    return {
        "input_tokens": texts,
        "input_tokens_details": {"text_tokens": texts, "image_tokens": 0},
        "output_tokens": codes,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": codes},
        "total_tokens": texts + codes,
    }


def base64_text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has stopped."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
