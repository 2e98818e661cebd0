"""AsyncEngine: rows arrive whole and in order, leaving the loop aborts, and the codes are the reference's."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import golden_model, write_folder
from reference_drawer import draw_greedily

from panoserve import PanoramaRequest
from panoserve.serve.engine import AsyncEngine

pytestmark = pytest.mark.engine


def test_rows_stream_in_order(golden: dict[str, Any], tmp_path: Path) -> None:
    model = golden_model(golden["c2i"])
    base = {"height": 64, "stride": 3, "temperature": 0.0, "guidance": 2.0}
    requests = [PanoramaRequest(label=label, width=16 * columns, **base) for label, columns in ((3, 13), (7, 16))]

    async def collect(engine: AsyncEngine, request: PanoramaRequest) -> list[Any]:
        return [row async for row in engine.stream(request)]

    async def scenario() -> None:
        async with AsyncEngine(write_folder(model, tmp_path), dtype="float32", max_lanes=16) as engine:
            abandoned = engine.stream(PanoramaRequest(label=1, width=16 * 40, **base))
            first = await anext(abandoned)
            assert first.index == 0 and first.codes.shape == (40,)
            await abandoned.aclose()
            streams = await asyncio.gather(*(collect(engine, request) for request in requests))
            for request, rows in zip(requests, streams, strict=True):
                assert [row.index for row in rows] == [0, 1, 2, 3]
                assert torch.stack([row.codes for row in rows]).tolist() == draw_greedily(model, request).tolist()
            panorama = await engine.generate(requests[0], decode=False)
            assert panorama.stats.drawn == 4 * 13

    asyncio.run(scenario())
    gc.collect()  # vLLM's AsyncLLM complains if it is collected only when the interpreter exits
