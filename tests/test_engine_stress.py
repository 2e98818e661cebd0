"""Many panoramas of mixed kinds at once, some aborted, in a cache of a few lanes: nothing leaks, hangs or differs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from golden_models import golden_model
from reference_drawer import draw_greedily

from panoserve import Engine, PanoramaRequest

pytestmark = pytest.mark.engine

PANORAMAS, ABORTS, LANES = 90, 30, 6


def kinds(vocabulary: int) -> list[PanoramaRequest]:
    """One of every kind, in either context; the two-directional ones need up to LANES - 1 lanes."""
    given = torch.full((4, 9), -1)
    given[:, :5] = torch.arange(20).view(4, 5) % vocabulary
    base: dict[str, Any] = {"label": 3, "stride": 3, "guidance": 2.0, "temperature": 0.0}
    shapes: list[dict[str, Any]] = [
        {"width": 64, "height": 64},
        {"width": 16 * 10, "height": 64},
        {"width": 64, "height": 16 * 7},
        {"width": 16 * 8, "height": 16 * 9, "row_stride": 2},
        {"width": 16 * 9, "height": 16 * 7, "loop": True},
        {"width": 16 * 10, "height": 64, "prompts": [{"label": 6, "left": 0.5}]},
        {"given": given},
    ]
    return [PanoramaRequest(**base, **shape, context=c) for shape in shapes for c in ("reuse", "recompute")]


def test_mixed_panoramas_with_aborts_in_a_small_cache(
    class_engine: Engine, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = class_engine._engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    monkeypatch.setattr(scheduler._admission, "blocks", LANES)  # a lane of the golden model is one block
    model, choice = golden_model(golden["c2i"]), random.Random(4)
    requests = kinds(golden["c2i"]["cfg"]["vocab"])
    expected = [draw_greedily(model, request).tolist() for request in requests]
    submissions = class_engine._prepare(requests, decode=False)
    running: dict[str, Any] = {}
    kind: dict[str, int] = {}
    finished = aborted = submitted = 0
    while submitted < PANORAMAS or running:
        while submitted < PANORAMAS and len(running) < 20:
            number = choice.randrange(len(submissions))
            kind[class_engine._submit(submissions[number], running)] = number
            submitted += 1
        if aborted < ABORTS and choice.random() < 0.2:
            victim = choice.choice(sorted(running))
            class_engine._engine.abort_request([victim])
            del running[victim]
            aborted += 1
            continue
        for request_id, error in class_engine._step(running, int):
            assert error is None
            assert running.pop(request_id).codes.tolist() == expected[kind[request_id]]
            finished += 1
        assert free - pool.get_num_free_blocks() <= LANES
    assert (finished, aborted) == (PANORAMAS - ABORTS, ABORTS)
    class_engine._engine.step()
    assert not scheduler.requests and not scheduler._panoramas and not scheduler._admission.holdings
    assert pool.get_num_free_blocks() == free
