"""The endless benchmark with an engine that draws zeros: what it asks for, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch

from panoserve.benchmarks import endless
from panoserve.configs.model import ModelConfig
from panoserve.serve.endless import Endless, Frontier
from panoserve.serve.request import PanoramaRequest


class ZeroEngine:
    """Every request takes as many steps as it has columns."""

    def __init__(self, model_dir: Any, **options: Any) -> None:
        self.config, self.steps = ModelConfig.load(model_dir), 0
        self.folder = SimpleNamespace(has_vq=False)
        pool = SimpleNamespace(get_num_free_blocks=lambda: 77)
        scheduler = SimpleNamespace(kv_cache_manager=SimpleNamespace(block_pool=pool))
        core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
        self._engine = SimpleNamespace(engine_core=core)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def generate(self, requests: list[PanoramaRequest], **options: Any) -> list[Any]:
        return [result for _, result in self.draw(requests)]

    def draw(self, requests: list[PanoramaRequest], advance: Callable[[int], Any] = int) -> Iterator[tuple[int, Any]]:
        for index, request in enumerate(requests):
            canvas = request.resolve(self.config).canvas(self.config)
            self.steps += canvas.columns
            codes = torch.zeros(canvas.rows, canvas.columns, dtype=torch.long)
            yield index, SimpleNamespace(codes=codes, truncated=False)

    def endless(self, request: PanoramaRequest, **options: Any) -> Endless:
        return Endless(self, Frontier(request, self.config, **options))  # type: ignore[arg-type]


def test_the_endless_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(endless, "Engine", ZeroEngine)
    arguments = ["--crops", "5", "--segments", "2", "--repeat", "1", "--rows", "20", "--columns", "100"]
    assert endless.main(arguments) == 0
    output = capsys.readouterr().out
    result = json.loads(output.splitlines()[-1])
    side, stride = endless.SMALL.grid_side, endless.SMALL.grid.default_stride
    long, segments = result["speed"]
    assert (long["segment"], long["steps"]) == (None, side + 4 * stride)
    # 2, 2 and 1 crops; the later ones also have the columns that they are given.
    assert (segments["segment"], segments["steps"]) == (2, 3 * side + 2 * stride)
    assert result["rows"] == 20
    columns = [sample["columns"] for sample in result["memory"]]
    assert columns == [side + stride * (2 * i + 1) for i in range(len(columns))] and columns[-1] >= 100
    assert {sample["free_blocks"] for sample in result["memory"]} == {77}
    assert "| one request of 5 | 64 |" in output


def test_a_run_of_limited_time_reports_what_it_saw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock that moves by 40 seconds whenever it is looked at: two segments, and then a minute is over."""
    ticks = iter(range(0, 10**6, 40))
    monkeypatch.setattr(endless, "Engine", ZeroEngine)
    monkeypatch.setattr(endless, "perf_counter", lambda: next(ticks))
    arguments = ["--repeat", "0", "--segments", "2", "--columns", "4000", "--minutes", "1"]
    assert endless.main(arguments) == 0
    output = capsys.readouterr().out
    result = json.loads(output.splitlines()[-1])
    assert [sample["seconds"] for sample in result["memory"]] == [40, 80]
    assert result["speed"] == [] and result["mib_per_1000_columns"] is None
    assert "in 80 s" in output and "too few samples" in output


def test_growth_is_that_of_the_second_half() -> None:
    def run(resident: list[float]) -> list[endless.Memory]:
        return [
            endless.Memory(columns=500 * i, resident_mib=mib, free_blocks=7, seconds=i)
            for i, mib in enumerate(resident)
        ]

    assert endless.growth(run([100, 300, 500, 520, 520, 520, 520, 520])) == 0
    assert endless.growth(run([100, 100, 100, 100, 100, 101, 102, 103])) == 2
    assert endless.growth(run([100, 200, 300])) is None
