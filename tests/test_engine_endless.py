"""Endless panoramas through the engine: the codes of one long panorama, and a cache that is free between segments."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from golden_models import golden_model
from reference_drawer import draw_greedily

from panoserve import Engine, PanoramaRequest
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.prompts import PromptAt

pytestmark = pytest.mark.engine


def free_blocks(engine: Engine) -> int:
    scheduler = engine._engine.engine_core.engine_core.scheduler
    assert not scheduler.requests and not scheduler._panoramas and not scheduler._admission.holdings
    return int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def test_segments_equal_one_long_panorama(class_engine: Engine, golden: dict[str, Any]) -> None:
    """float32, greedy, `recompute`: both directions, two bands, a prompt that changes along the way."""
    base: dict[str, Any] = {"label": 3, "stride": 3, "temperature": 0.0, "guidance": 2.0, "context": "recompute"}
    before, model = free_blocks(class_engine), golden_model(golden["c2i"])
    for axis, across in ((1, {"height": 16 * 7}), (0, {"width": 16 * 4})):
        at = PromptAt(label=5, **{("top", "left")[axis]: 16 * 9})  # type: ignore[arg-type]
        request = PanoramaRequest(**base, **across, prompts=[at])
        strips = class_engine.endless(request, direction=("down", "right")[axis], crops=2)
        codes = []
        for strip in islice(strips, 3):
            codes.append(strip.codes)
            assert free_blocks(class_engine) == before
        canvas = torch.cat(codes, dim=axis)
        length = {("height", "width")[axis]: 16 * canvas.shape[axis]}
        long = PanoramaRequest(**base, **across, **length, prompts=[at])  # type: ignore[arg-type]
        assert canvas.tolist() == draw_greedily(model, long).tolist()


@pytest.mark.parametrize("context", CONTEXTS)
def test_sampled_segments_repeat(class_engine: Engine, context: str) -> None:
    """The same seed draws the same; in `recompute` whatever the segments' length, and what one long panorama shows."""
    base: dict[str, Any] = {"label": 2, "stride": 2, "temperature": 1.0, "top_k": 20, "seed": 11, "context": context}

    def draw(crops: int, segments: int) -> list[list[int]]:
        strips = class_engine.endless(PanoramaRequest(**base), crops=crops)
        return torch.cat([strip.codes for strip in islice(strips, segments)], dim=1).tolist()

    codes = draw(3, 4)
    assert codes == draw(3, 4)
    if context == "recompute":
        assert codes == draw(4, 3)
        long = PanoramaRequest(**base, width=16 * len(codes[0]), height=64)
        assert codes == class_engine.generate([long], decode=False, progress=False)[0].codes.tolist()


def test_interrupting_a_segment_frees_everything(class_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the segment can be asked for again."""
    before = free_blocks(class_engine)
    strips = class_engine.endless(PanoramaRequest(label=4, stride=3, temperature=0.0), crops=4)
    expected = [strip.codes.tolist() for strip in islice(strips, 2)]
    strips = class_engine.endless(PanoramaRequest(label=4, stride=3, temperature=0.0), crops=4)
    assert next(strips).codes.tolist() == expected[0]
    steps, real_step = iter(range(10)), class_engine._engine.step

    def step() -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return real_step()

    monkeypatch.setattr(class_engine._engine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        next(strips)
    monkeypatch.undo()
    class_engine._engine.step()
    assert free_blocks(class_engine) == before
    assert next(strips).codes.tolist() == expected[1]
