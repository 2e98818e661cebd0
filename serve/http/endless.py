"""POST /v1/images/endless: a panorama that goes on for as long as its stream is read, and a way to steer it.

Each segment (serve/endless.py) is accepted by the queue as a picture is, and waits for room in it: an endless panorama
takes its turn among the others. Between segments nothing of it is in the engine. A client that reads slowly holds it
up; one that leaves ends it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from panoserve.configs.grid import MAX_SIDE
from panoserve.configs.model import ModelConfig
from panoserve.serve.endless import DIRECTIONS, Frontier
from panoserve.serve.http.checks import Field, one_of, refused, shown, whole
from panoserve.serve.http.errors import ApiError, bad_value
from panoserve.serve.http.fields import FIELDS, OUR_FIELDS, Output, check_crops, output_of, request_of
from panoserve.serve.http.pictures import base64_text, encoded
from panoserve.serve.http.runs import Events, Run
from panoserve.serve.prompts import MAX_PLACE, PromptAt
from panoserve.vq.endless import EndlessDecoder
from panoserve.vq.images import to_pil

if TYPE_CHECKING:
    import torch

    from panoserve.serve.http.backlog import Ticket
    from panoserve.serve.http.service import ImageService

MAX_CROPS = 64  # of a segment
MAX_STEERS = 1000  # prompts of one panorama
GIB = 1 << 30
ROOM_SECONDS = 0.5  # between looks for room in the queue

ENDLESS_FIELDS: dict[str, Field] = {
    **{name: FIELDS[name] for name in ("prompt", "model", "output_format", "output_compression", *OUR_FIELDS)},
    "loop": refused("an endless panorama never comes back"),
    "direction": one_of(*DIRECTIONS),
    "width": whole(1, MAX_SIDE).noted("pixels across, where the direction is down"),
    "height": whole(1, MAX_SIDE).noted("pixels across, where the direction is right"),
    "crops": whole(1, MAX_CROPS).noted("crops of a segment"),
    "limit": whole(1, MAX_SIDE).noted("pixels after which to stop; without it, when the stream is closed"),
}
STEER_FIELDS: dict[str, Field] = {
    **{name: FIELDS[name] for name in ("prompt", "label")},
    "at": whole(0, MAX_PLACE).noted("pixel from which it holds; by default as soon as possible"),
}


@dataclass(frozen=True, slots=True, eq=False)
class EndlessJob:
    """A checked request. `frontier` says how far it has come, and what is to be drawn next."""

    name: str  # what it is steered by
    frontier: Frontier
    output: Output


def endless_job(values: dict[str, Any], config: ModelConfig, context: str) -> EndlessJob:
    """Checked fields as a job. Raises ApiError or InvalidRequestError."""
    options = {name: values[name] for name in ("direction", "crops", "limit") if name in values}
    size = {name: values[name] for name in ("width", "height") if name in values}
    output = output_of(values)
    frontier = Frontier(replace(request_of(values, config), **size), config, context, **options)
    segment = frontier.next_request()
    check_crops([segment.canvas(config)], segment, config, "crops")
    return EndlessJob(secrets.token_urlsafe(12), frontier, output)


class EndlessPanoramas:
    """The endless panoramas that are being drawn. Belongs to one event loop."""

    def __init__(self, service: ImageService) -> None:
        self._service = service
        self._running: dict[str, Frontier] = {}

    def first_ticket(self, job: EndlessJob) -> Ticket:
        """Room for the first segment. Raises ApiError: 400, 429 or 503."""
        return self._service.accept(segment_codes(job.frontier), "crops")

    async def paint(self, job: EndlessJob, ticket: Ticket, request_id: str, events: Events) -> None:
        """Draw segment after segment until the limit, or until this is cancelled."""
        frontier, scale = job.frontier, self._service.engine.config.downsample
        memory = int(self._service.settings.decode_memory_gib * GIB)
        decoder = EndlessDecoder(self._service.engine.vq, frontier.config.grid_side, frontier.axis, memory=memory)
        tiles = Tiles(decoder, job, scale)
        self._running[job.name] = frontier
        segment = 0
        try:
            await events.put({"type": "image_endless.started", **tiles.facts()})
            while not frontier.done:
                strip = await self._segment(job, ticket, f"{request_id}-{segment}", events)
                for event in await self._service.studio.run(partial(tiles.take, strip)):
                    await events.put(event)
                segment += 1
                if not frontier.done:
                    ticket = await self._room(segment_codes(frontier))
            await events.put({"type": "image_endless.completed", **tiles.facts()})
        finally:
            ticket.close()
            del self._running[job.name]

    async def _segment(self, job: EndlessJob, ticket: Ticket, request_id: str, events: Events) -> torch.Tensor:
        """The new codes of the next segment; progress in events meanwhile."""
        request = job.frontier.next_request()
        rows = request.canvas(job.frontier.config).rows
        with Run(self._service, request, ticket, request_id) as run:
            async with aclosing(run.rows()) as done:
                async for row in done:
                    await events.put({"type": "progress", "rows": row, "of": rows})
        ticket.close()
        return job.frontier.take(run.codes).codes

    async def _room(self, codes: int) -> Ticket:
        """A share of the queue, as soon as there is one."""
        while True:
            try:
                return self._service.accept(codes, "crops", counted=False)
            except ApiError as error:
                if error.status != 429:
                    raise
            await asyncio.sleep(ROOM_SECONDS)

    def steer(self, name: str, values: dict[str, Any]) -> int:
        """Draw something else from a pixel on; which one is returned. Raises ApiError or InvalidRequestError."""
        frontier = self._running.get(name)
        if frontier is None:
            message = f"no endless panorama {shown(name)} is being drawn; it may have ended"
            raise ApiError(404, message, code="endless_not_found")
        if len(frontier.prompts) >= MAX_STEERS:
            raise bad_value("prompt", f"the panorama has {MAX_STEERS} prompts already, and takes no more")
        place = {frontier.places[0]: values.get("at", 0)}
        return frontier.steer(PromptAt(prompt=values.get("prompt"), label=values.get("label"), **place))


class Tiles:
    """Turns the codes of an endless panorama into events: tiles that are final, and what is there beyond them."""

    def __init__(self, decoder: EndlessDecoder, job: EndlessJob, scale: int) -> None:
        self._decoder, self._job, self._scale = decoder, job, scale
        self._pixels = 0  # of final tiles, along the panorama
        self._index = 0
        self._there = 0  # pixels, with what is not final

    def facts(self) -> dict[str, Any]:
        """What the panorama is, and how long it is by now."""
        frontier = self._job.frontier
        along = {frontier.length: self._there, frontier.across: getattr(frontier.request, frontier.across)}
        return {"id": self._job.name, "seed": frontier.request.seed, **along, "created_at": int(time.time())}

    def take(self, codes: torch.Tensor) -> list[dict[str, Any]]:
        """Events of a strip [H, n] (or [n, W]) of new codes; the last ones if the panorama is done with it."""
        frontier = self._job.frontier
        if frontier.limit is not None:  # whole crops were drawn
            room = -(-frontier.limit // self._scale) - self._decoder.end
            codes = codes.narrow(frontier.axis, 0, min(room, codes.shape[frontier.axis]))
        events = [self._event("tile", tile) for tile in self._decoder.push(codes)]
        rest = self._decoder.finish()
        return events if rest is None else [*events, self._event("tile" if frontier.done else "rest", rest)]

    def _event(self, kind: str, pixels: torch.Tensor) -> dict[str, Any]:
        """A piece [3, H, W] of the picture, cut at the limit. `rest` is drawn anew with the next strip."""
        frontier = self._job.frontier
        dim, length = frontier.axis + 1, frontier.limit
        if length is not None:
            pixels = pixels.narrow(dim, 0, min(pixels.shape[dim], length - self._pixels))
        start = self._pixels
        self._there = start + pixels.shape[dim]
        head: dict[str, Any] = {"type": f"image_endless.{kind}", "start": start}
        if kind == "tile":
            head["index"] = self._index
            self._index += 1
            self._pixels = self._there
        content = encoded(np.asarray(to_pil(pixels)), self._job.output)
        size = {"width": pixels.shape[2], "height": pixels.shape[1]}
        return {
            **head, **size, "b64_json": base64_text(content), "output_format": self._job.output.output_format,
        }  # fmt: skip


def segment_codes(frontier: Frontier) -> int:
    """Codes of the canvas of the next segment."""
    across: int = getattr(frontier.request, frontier.across)
    return frontier.next_length * (across // frontier.config.downsample)
