"""Crop after crop and the clocks of the benchmark, on a running engine."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from panoserve import PanoramaRequest
from panoserve.benchmarks import ceilings, throughput, throughput_report
from panoserve.benchmarks.breakdown import PARTS, Stopwatch, parts_timed
from panoserve.benchmarks.crops import draw_crops
from panoserve.benchmarks.workload import Workload


def requests(engine: Any, stride: int) -> list[PanoramaRequest]:
    grid = engine.config.grid
    return [
        PanoramaRequest(
            label=label,
            width=(grid.side + 2 * stride + 1) * grid.downsample,  # the last stride shrinks to one column
            height=grid.crop_pixels,
            stride=stride,
            seed=label,
            temperature=temperature,
            context="recompute",
        )
        for label, temperature in ((0, 0.0), (1, 1.0))
    ]


@pytest.mark.engine
@pytest.mark.parametrize("overlap", [0, 1])
def test_crop_after_crop_draws_what_the_wavefront_draws(class_engine: Any, overlap: int) -> None:
    """Code by code, greedy and sampled, with and without an overlap; only the steps differ."""
    wanted = requests(class_engine, class_engine.config.grid.side - overlap)
    wavefront = class_engine.generate(wanted, decode=False, progress=False)
    for one, other in zip(draw_crops(class_engine, wanted), wavefront, strict=True):
        assert one.codes.equal(other.codes)
        assert (one.stats.drawn, one.stats.lanes) == (other.stats.drawn, other.stats.lanes)
        assert one.stats.forward_tokens == other.stats.forward_tokens
        assert one.stats.steps > other.stats.steps


@pytest.mark.engine
def test_clocks_see_every_part_and_change_nothing(class_engine: Any) -> None:
    grid = class_engine.config.grid
    width, height = (2 * grid.side - 1) * grid.downsample, grid.crop_pixels
    wanted = [PanoramaRequest(label=1, width=width, height=height, stride=2, temperature=0.0, seed=0)]
    [plain] = class_engine.generate(wanted, decode=False, progress=False)
    with parts_timed(class_engine) as watch:
        [timed] = class_engine.generate(wanted, decode=False, progress=False)
    assert timed.codes.equal(plain.codes)
    seconds = dict(watch.seconds)
    busy = {part for part in PARTS if seconds[part] > 0}
    assert busy == set(PARTS)  # KV copies too: the request is drawn in context reuse
    assert sum(seconds.values()) <= timed.stats.seconds * 1.05 + 0.05
    class_engine.generate(wanted, decode=False, progress=False)
    assert dict(watch.seconds) == seconds  # the clocks are off


@pytest.mark.engine
@pytest.mark.parametrize("condition", ["class", "caption"])
def test_the_benchmark_on_an_engine(
    condition: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole measurement, real counters: every way of drawing, two widths, a breakdown of each.

    Only the first engine of a process runs inside it, where clocks can be put around its parts and every step is
    counted for the crop it belongs to; a benchmark's is the only one, a test session's may be the second.
    """
    from vllm.v1.engine.core_client import InprocClient

    engine = request.getfixturevalue(f"{condition}_engine")
    inside = isinstance(engine._engine.engine_core, InprocClient)
    monkeypatch.setattr(throughput, "Engine", lambda *arguments, **options: nullcontext(engine))
    monkeypatch.setattr(Workload, "config", engine.config)
    monkeypatch.setattr(ceilings, "READ_BYTES", 2**16)
    side = engine.config.grid.side
    workload = Workload(condition=condition, caption_rows=2, grid=side, strides=(side - 1,), crops=(2, 3),
                        panoramas=(2,), orders=("wavefront", "crops"), dtype="float32", top_k=5, repeat=1,
                        breakdown=inside)  # fmt: skip
    result = throughput.measure(workload, lambda line: None)
    assert [(case["order"], case["context"]) for case in result["cases"][:3]] == [
        ("wavefront", "reuse"), ("wavefront", "recompute"), ("crops", "recompute"),
    ]  # fmt: skip
    for (reuse, recompute, crops), wide in zip((result["cases"][:3], result["cases"][3:]), (2, 3), strict=True):
        drawn = 2 * side * (side + (wide - 1) * (side - 1))
        assert {case["drawn"] for case in (reuse, recompute, crops)} == {drawn}
        if not inside:
            continue
        assert recompute["steps"] == side * side + (wide - 1) * (side - 1)
        assert crops["steps"] == side * side + (wide - 1) * side * (side - 1)
        assert reuse["breakdown_ms"]["KV copies"] > 2 * recompute["breakdown_ms"]["KV copies"]
        for case in (reuse, recompute, crops):
            parts = case["breakdown_ms"]
            assert min(parts[part] for part in PARTS if part != "KV copies") > 0
    text = throughput_report.table(result)
    assert "wavefront over crop after crop" in text
    assert ("least for KV" in text) == inside


def test_inner_parts_are_not_counted_twice() -> None:
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    watch = Stopwatch(clock=lambda: next(ticks))
    watch.enter("engine")  # 0
    watch.around("element-wise", lambda: watch.around("attention", lambda: None)())()  # 1: 3 to 6: 10
    watch.leave()  # 15
    assert {part: value for part, value in watch.seconds.items() if value} == {
        "engine": 1 + 5, "element-wise": 2 + 4, "attention": 3,
    }  # fmt: skip


def test_a_part_that_fails_is_left() -> None:
    watch = Stopwatch(clock=iter([0.0, 1.0, 2.0, 4.0]).__next__)

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        watch.around("sampling", fail)()
    watch.around("engine", torch.empty)(0)
    assert (watch.seconds["sampling"], watch.seconds["engine"]) == (1, 2)
