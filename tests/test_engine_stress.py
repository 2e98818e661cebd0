"""Many panoramas at once: mixed kinds, some aborted, several of a prompt, by priority, in a cache of a few lanes.

Nothing leaks, hangs or differs from what is drawn alone.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from golden_models import golden_model
from reference_drawer import draw_greedily

from panoserve import Engine, Panorama, PanoramaRequest
from panoserve.errors import PanoramaFailedError, PanoserveError

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
    assert_clean(scheduler, free)


def assert_clean(scheduler: Any, free: int) -> None:
    assert not scheduler.requests and not scheduler._panoramas and not scheduler._admission.holdings
    assert not scheduler._queue and not scheduler._preempted
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == free


def test_several_pictures_of_a_prompt_are_those_drawn_alone(
    class_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled, seeds counted up as the server does for `n`, all in a cache of three lanes, under mixed priorities."""
    scheduler = class_engine._engine.engine_core.engine_core.scheduler
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    base: dict[str, Any] = {"width": 16 * 10, "height": 64, "stride": 3, "guidance": 2.0, "temperature": 1.0}
    requests = [
        PanoramaRequest(**base, label=label, seed=seed, context=context, priority=seed % 3 - 1)
        for label, context in ((3, "reuse"), (6, "recompute"))
        for seed in range(4)
    ]
    alone = [class_engine.generate([request], decode=False, progress=False)[0].codes for request in requests]
    assert len({tuple(codes.flatten().tolist()) for codes in alone}) == len(requests)
    monkeypatch.setattr(scheduler._admission, "blocks", 3)
    together = class_engine.generate(requests, decode=False, progress=False)
    assert [result.codes.tolist() for result in together] == [codes.tolist() for codes in alone]
    class_engine._engine.step()
    assert_clean(scheduler, free)


def test_what_waits_begins_by_priority_and_then_by_age(class_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane at a time: what is under way goes on; of the rest, the least number is first, and equals keep turns."""
    scheduler = class_engine._engine.engine_core.engine_core.scheduler
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    monkeypatch.setattr(scheduler._admission, "blocks", 1)
    base: dict[str, Any] = {"label": 3, "width": 64, "height": 64, "temperature": 0.0}
    priorities = [5, 0, 1, -1, 0, 1]
    requests = [PanoramaRequest(**base, priority=priority) for priority in priorities]
    running: dict[str, Any] = {}
    ids = [class_engine._submit(s, running) for s in class_engine._prepare(requests, decode=False)]
    finished: list[int] = []
    while running:
        for request_id, error in class_engine._step(running, int):
            assert error is None
            del running[request_id]
            finished.append(ids.index(request_id))
    assert finished == [0, 3, 1, 4, 2, 5]
    class_engine._engine.step()
    assert_clean(scheduler, free)


def test_a_failed_step_takes_only_what_was_under_way(
    class_engine: Engine, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth step of many raises inside the model; what came later is drawn as if nothing had been."""
    core = class_engine._engine.engine_core.engine_core
    free = core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    model, kept = golden_model(golden["c2i"]), kinds(golden["c2i"]["cfg"]["vocab"])
    expected = [draw_greedily(model, request) for request in kept]
    requests = kept * 3
    runner = core.model_executor.driver_worker.worker.model_runner
    forward, steps = runner.model.forward, iter(range(10**6))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == 5:
            raise RuntimeError("out of\n memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(runner.model, "forward", failing)
    results: dict[int, Panorama | PanoserveError] = dict(class_engine.draw(requests))
    failed = {index: result for index, result in results.items() if not isinstance(result, Panorama)}
    assert sorted(results) == list(range(len(requests)))
    assert 0 < len(failed) < len(requests) / 2
    assert {str(error) for error in failed.values()} == {
        "an engine step failed (RuntimeError: out of memory); draw it again"
    }
    for index, result in results.items():
        if isinstance(result, Panorama):
            assert torch.equal(result.codes, expected[index % len(kept)])
    class_engine._engine.step()
    assert_clean(core.scheduler, free)


def test_a_preempted_lane_takes_its_panorama_with_it(class_engine: Engine, golden: dict[str, Any]) -> None:
    """vLLM would compute the lane's keys and values again, which is not what it copied; the others do not notice."""
    scheduler = class_engine._engine.engine_core.engine_core.scheduler
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    base: dict[str, Any] = {"label": 3, "stride": 3, "guidance": 2.0, "temperature": 0.0, "height": 64}
    requests = [PanoramaRequest(**base, width=width) for width in (160, 208)]
    running: dict[str, Any] = {}
    victim, other = (class_engine._submit(s, running) for s in class_engine._prepare(requests, decode=False))
    for _ in range(4):
        assert class_engine._step(running, int) == []
    lane = next(request for request in scheduler.running if request.request_id.startswith(victim))
    scheduler.running.remove(lane)
    scheduler._preempt_request(lane, 0.0)
    failures: dict[str, PanoramaFailedError | None] = {}
    drawings = dict(running)
    while running:
        for request_id, failure in class_engine._step(running, int):
            failures[request_id] = failure
            del running[request_id]
    assert failures[other] is None
    assert torch.equal(drawings[other].codes, draw_greedily(golden_model(golden["c2i"]), requests[1]))
    assert "stopped drawing after" in str(failures[victim]) and "(error)" in str(failures[victim])
    class_engine._engine.step()
    assert_clean(scheduler, free)
