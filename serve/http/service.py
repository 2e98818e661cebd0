"""Draw image jobs: accepted by the backlog, prepared and decoded in threads, counted, aborted when asked to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from panoserve.serve.engine import AsyncEngine
from panoserve.serve.http.backlog import Backlog, Ticket
from panoserve.serve.http.endless import EndlessJob, EndlessPanoramas
from panoserve.serve.http.errors import ApiError, as_api_error, engine_dead
from panoserve.serve.http.fields import ImageJob
from panoserve.serve.http.logs import log_event
from panoserve.serve.http.metrics import metrics
from panoserve.serve.http.pictures import MEDIA_TYPES, Studio, base64_text
from panoserve.serve.http.runs import Events, Run
from panoserve.serve.http.settings import HttpSettings
from panoserve.serve.http.store import PictureStore
from panoserve.serve.request import PanoramaRequest
from panoserve.serve.work import Round, Work

if TYPE_CHECKING:
    import torch
    from vllm.v1.engine.async_llm import AsyncLLM

    from panoserve.serve.drawing import Drawing
    from panoserve.serve.folder import ModelFolder

T = TypeVar("T")
Runs = dict[str, Run]  # of every request of a round
Watch = Callable[[Round, Runs], Awaitable[None]]

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One picture's file, what it was asked for, and the canvases that were drawn for it."""

    request: PanoramaRequest
    drawings: list[Drawing]
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
        self.endless = EndlessPanoramas(self)
        self.metrics.max_codes.set(settings.max_queue_codes)
        self.metrics.waiting_codes.set_function(lambda: self.backlog.codes)

    # ---- whole pictures ----

    async def images(self, job: ImageJob, request_id: str) -> list[Drawn]:
        """Draw all pictures of a job at once. Cancelling the call aborts them and frees their lanes."""
        ticket = self._accept(job)
        try:
            pictures = [self._make(work, job, ticket, f"{request_id}-{i}") for i, work in enumerate(job.works)]
            return await together(*pictures)
        finally:
            ticket.close()

    async def _make(
        self, work: Work, job: ImageJob, ticket: Ticket, request_id: str, watch: Watch | None = None
    ) -> Drawn:
        """All rounds of one picture. `watch` is awaited after every row that is complete."""
        drawings: list[Drawing] = []
        step: Round | bytes = await self.studio.begin(work)
        while isinstance(step, Round):
            with ExitStack() as stack:
                runs: Runs = {}
                for name, request in step.requests.items():
                    run_id = f"{request_id}-{name}" if len(work.canvases) > 1 else request_id
                    runs[name] = stack.enter_context(Run(self, request, ticket, run_id))
                await together(*(follow(run, step, runs, watch) for run in runs.values()))
                step = await self.studio.finish(step, codes_of(runs), job.output)
            drawings += [run.drawing for run in runs.values()]
        return Drawn(work.request, drawings, step)

    # ---- streams ----

    def events(self, job: ImageJob, request_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The events of one streamed picture, as openai's client reads them; closing the iterator aborts the drawing.

        ApiError is raised at once; later failures become an event. The first event is `accepted`. A partial picture
        comes whenever a further (partial_images + 1)th of the rows is complete; while one is painted the drawing goes
        on, so that a fast drawing sends fewer of them. `progress` events say how many rows are complete.
        """
        ticket = self._accept(job)
        events: Events = asyncio.Queue(maxsize=2)  # a slow reader holds painting up
        return self._told(self._paint(job, ticket, request_id, events), events, ticket, request_id)

    def endless_events(self, job: EndlessJob, request_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The events of an endless panorama (http/endless.py), likewise."""
        ticket = self.endless.first_ticket(job)
        events: Events = asyncio.Queue(maxsize=2)
        return self._told(self.endless.paint(job, ticket, request_id, events), events, ticket, request_id)

    async def _told(
        self, painting: Coroutine[Any, Any, None], events: Events, ticket: Ticket, request_id: str
    ) -> AsyncGenerator[dict[str, Any]]:
        """`accepted`, then the events that `painting` puts, and its failure; closing the iterator cancels it."""

        async def to_its_end() -> None:
            try:
                await painting
            except Exception as error:
                await events.put(self.failure(error, request_id).body)
            await events.put(None)

        def ended(_: object) -> None:
            """Even if the task is cancelled before it has begun."""
            ticket.close()
            painting.close()

        task = asyncio.create_task(to_its_end())
        task.add_done_callback(ended)
        try:
            yield {"type": "accepted"}
            while (event := await events.get()) is not None:
                yield event
        finally:
            # A task of its own: cancelling it needs no await, so it works while this generator is being cancelled.
            task.cancel()

    async def _paint(self, job: ImageJob, ticket: Ticket, request_id: str, events: Events) -> None:
        [work] = job.works
        previews = Previews(self.studio, job, events)
        drawn = await self._make(work, job, ticket, request_id, previews.row_done)
        head = event_head("completed", job, drawn.content)
        await events.put({**head, "usage": usage(drawn.drawings), **facts(drawn)})

    # ---- shared ----

    def _accept(self, job: ImageJob) -> Ticket:
        return self.accept(job.codes, "size" if job.kind == "image_generation" else "image")

    def accept(self, codes: int, param: str, *, counted: bool = True) -> Ticket:
        """A share of the queue. Raises ApiError: 400 about `param`, 429 (`counted` as a rejected request), or 503."""
        if self.dead:
            raise engine_dead()
        try:
            return self.backlog.accept(codes, param)
        except ApiError as error:
            if error.status == 429 and counted:
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

    def answer(self, job: ImageJob, drawn: list[Drawn], base_url: str) -> dict[str, Any]:
        """The body of a 200, as openai's ImagesResponse, with `seed` beside each picture."""
        data: list[dict[str, Any]] = []
        for one in drawn:
            if job.output.response_format == "url":
                name = self.store.put(one.content, MEDIA_TYPES[job.output.output_format])
                picture = {"url": f"{base_url}/images/{name}.{job.output.output_format}"}
            else:
                picture = {"b64_json": base64_text(one.content)}
            data.append(picture | facts(one))
        safety = {"safety_identifier": job.output.safety_identifier} if job.output.safety_identifier else {}
        drawings = [drawing for one in drawn for drawing in one.drawings]
        return {"created": int(time.time()), "data": data, **described(job), **safety, "usage": usage(drawings)}


def codes_of(runs: Runs) -> dict[str, torch.Tensor]:
    return {name: run.codes for name, run in runs.items()}


async def follow(run: Run, round_: Round, runs: Runs, watch: Watch | None) -> None:
    """Draw one canvas to its end."""
    async with aclosing(run.rows()) as rows:
        async for _ in rows:
            if watch is not None:
                await watch(round_, runs)


async def together(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """The results of all; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


class Previews:
    """Events of one picture while its rows are completed."""

    def __init__(self, studio: Studio, job: ImageJob, events: Events) -> None:
        self._studio, self._job, self._events = studio, job, events
        self._rows = job.works[0].rows
        self._marks = due_rows(self._rows, job.output.partial_images)
        self._done = 0
        self._earlier: dict[Round, int] = {}  # rows that were complete when a round began
        self._index = 0
        self._painting = False

    async def row_done(self, round_: Round, runs: Runs) -> None:
        """One more row of a round is complete."""
        earlier = self._earlier.setdefault(round_, self._done)
        self._done += 1
        await self._events.put({"type": "progress", "rows": self._done, "of": self._rows})
        if self._painting or not self._marks or self._done < self._marks[0]:
            return
        codes = codes_of(runs)  # rows that came while a picture was painted are in it already
        rows = earlier + sum(map(len, codes.values()))
        if rows == self._rows:
            return
        self._marks = [mark for mark in self._marks if mark > rows]
        self._painting = True  # another canvas's row may come meanwhile
        content = await self._studio.preview(round_, codes, self._job.output)
        place = {"partial_image_index": self._index, "rows": rows, "of": self._rows}
        await self._events.put(event_head("partial_image", self._job, content) | place)
        self._index += 1
        self._painting = False


def event_head(kind: str, job: ImageJob, content: bytes) -> dict[str, Any]:
    """What partial and whole pictures have in common."""
    head = {"type": f"{job.kind}.{kind}", "b64_json": base64_text(content), "created_at": int(time.time())}
    return head | described(job)


def facts(drawn: Drawn) -> dict[str, Any]:
    """What we add to each picture: the seed that draws it again, and whether the prompt was cut."""
    truncated = any(drawing.submission.truncated for drawing in drawn.drawings)
    return {"seed": drawn.request.seed} | ({"prompt_truncated": True} if truncated else {})


def due_rows(rows: int, partial_images: int) -> list[int]:
    """After how many rows a partial picture is due: evenly spread, none for the whole picture."""
    marks = {rows * (i + 1) // (partial_images + 1) for i in range(partial_images)}
    return sorted(mark for mark in marks if 0 < mark < rows)


def described(job: ImageJob) -> dict[str, str]:
    """What OpenAI repeats with every picture."""
    return {"background": "opaque", "output_format": job.output.output_format, "quality": "high", "size": job.size}


def usage(drawings: list[Drawing]) -> dict[str, Any]:
    """Counts in OpenAI's terms: text tokens are condition rows, image tokens are codes, given ones and drawn ones."""
    texts = given = drawn = 0
    for drawing in drawings:
        captions = drawing.submission.prompt.get("multi_modal_data", {}).get("caption", [])
        texts += sum(map(len, captions))
        assert drawing.stats is not None
        drawn += drawing.stats.drawn
        given += drawing.canvas.codes - drawing.stats.drawn
    return {
        "input_tokens": texts + given,
        "input_tokens_details": {"text_tokens": texts, "image_tokens": given},
        "output_tokens": drawn,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
        "total_tokens": texts + given + drawn,
    }


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has stopped."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
