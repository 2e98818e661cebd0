"""One canvas that is being drawn for a client, from acceptance to its end, as the metrics and the log see it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from panoserve.serve.http.backlog import Ticket
from panoserve.serve.http.logs import log_event
from panoserve.serve.request import PanoramaRequest

if TYPE_CHECKING:
    from panoserve.serve.drawing import Drawing
    from panoserve.serve.http.service import ImageService


TRACE_HEADERS = ("traceparent", "tracestate")
# W3C trace context of the request that is being served, for the spans that vLLM exports (--otlp-traces-endpoint).
TRACE: ContextVar[Mapping[str, str] | None] = ContextVar("trace", default=None)
Events = asyncio.Queue[dict[str, Any] | None]  # of one stream; None ends it


class Run:
    """Use it as a context manager: how it is left is how the drawing ended."""

    def __init__(self, service: ImageService, request: PanoramaRequest, ticket: Ticket, request_id: str) -> None:
        self._service = service
        self._request = request
        self._ticket = ticket
        self._id = request_id
        self._begun = time.perf_counter()
        self._gauge = service.metrics.queued
        self._first_row: float | None = None
        self._canvas = request.canvas(service.engine.config)
        self._drawing: Drawing | None = None

    def __enter__(self) -> Run:
        self._gauge.inc()
        return self

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
        self._drawing = await service.prepare(self._request)
        async with aclosing(service.engine.rows(self._drawing, self._id, TRACE.get())) as rows:
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
    def drawing(self) -> Drawing:
        """Once the first row is there."""
        assert self._drawing is not None
        return self._drawing

    @property
    def codes(self) -> torch.Tensor:
        """The rows that are complete, int64 [rows, W]."""
        if self._drawing is None or not self._drawing.rows:
            return torch.empty(0, self._canvas.columns, dtype=torch.long)
        return self._drawing.codes
