"""The quality benchmark from command line to table, with an engine that draws noise and networks that are sums."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import write_tiny_folder

from panoserve.benchmarks import quality, quality_report
from panoserve.benchmarks.quality import subjects
from panoserve.configs.model import ModelConfig
from panoserve.errors import EnvironmentProblem
from panoserve.serve.request import PanoramaRequest


class NoiseEngine:
    """Draws grey noise that is darker the smaller the stride; counts requests."""

    def __init__(self, model_dir: Any, **options: Any) -> None:
        self.config, self.steps = ModelConfig.load(model_dir), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def generate(self, requests: Sequence[PanoramaRequest], **options: Any) -> list[Any]:
        self.steps += 10
        return [
            SimpleNamespace(request=request.resolve(self.config), stats=SimpleNamespace(drawn=100))
            for request in requests
        ]

    def picture(self, panorama: Any) -> Image.Image:
        request = panorama.request
        rng = np.random.default_rng(request.seed)
        pixels = rng.integers(30 * request.stride, size=(request.height, request.width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


class Sums:
    """Stands for both networks: means of colours."""

    @classmethod
    def load(cls) -> Self:
        return cls()

    def pairs(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.pdist(crops.mean((2, 3)))

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        return crops.mean((2, 3)).double()


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "Engine", NoiseEngine)
    monkeypatch.setattr(quality, "STLPIPS", Sums)
    monkeypatch.setattr(quality, "Features", Sums)
    monkeypatch.setattr(quality, "imported", lambda name: None)
    monkeypatch.setattr("panoserve.benchmarks.pictures.ssim", lambda a, b: 1 - (a - b).abs().mean((1, 2, 3)))
    monkeypatch.setattr(quality, "RESAMPLES", 20)


def test_the_quality_benchmark(stubs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_tiny_folder(tmp_path / "tiny"), tmp_path / "quality.jsonl"
    arguments = ["--model", str(folder), "--prompts", "3", "--json", str(out)]
    assert quality.main([*arguments, "--strides", "2,4,8", "--widths", "2,3", "--contexts", "reuse"]) == 0
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["variant"]["stride"], r["variant"]["width"]) for r in results] == [
        (2, 2), (4, 2), (8, 2), (2, 3), (4, 3), (8, 3),
    ]  # fmt: skip
    for result in results:
        assert set(result["metrics"]) == set(quality_report.METRICS)
        assert all(m["low"] <= m["value"] <= m["high"] for m in result["metrics"].values())
        assert result["codes_per_second"] == pytest.approx(300 / result["seconds"])
        assert result["steps"] == 10
    likeness = [result["metrics"]["ssim"]["value"] for result in results[:3]]
    assert likeness == sorted(likeness, reverse=True)  # darker noise differs less
    printed = capsys.readouterr().out
    assert "| independent crops, 3 wide |" in printed and "| stride 2 of 8, 2 wide, reuse |" in printed


def test_report_and_charts_of_quality(stubs: None, tmp_path: Path) -> None:
    folder, out = write_tiny_folder(tmp_path / "tiny"), tmp_path / "quality.jsonl"
    arguments = ["--model", str(folder), "--prompts", "2", "--json", str(out)]
    assert quality.main([*arguments, "--strides", "2,4,8"]) == 0
    assert quality.main([*arguments, "--strides", "4", "--widths", "2,4,6", "--contexts", "recompute,reuse"]) == 0
    results = [json.loads(line) for line in out.read_text().splitlines()]
    block = quality_report.quality(results)
    lines = [line for line in block.text.splitlines() if line.startswith(("| stride", "| independent"))]
    assert len(lines) == 3 + 6 - 1  # stride 4, width 4 in `reuse` was measured twice; the newer counts
    strides, sizes = block.charts["benchmarks-strides"], block.charts["benchmarks-sizes"]
    assert strides.lines[0].x == (0.25, 0.5, 1) and strides.lines[0].y[0] == 1  # type: ignore[union-attr]
    assert sizes.lines[0].x == (2, 4, 6)  # type: ignore[union-attr]


def test_held_out_crops_are_no_training_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def render(scene: int) -> np.ndarray:
        seen.append(scene)
        return np.full((192, 960, 3), scene % 7, np.uint8)

    monkeypatch.setattr("panoserve.train.render.render_scene", render)
    crops = quality.held_out_windows(64, 3)
    assert crops.shape == (6, 3, 64, 64)
    assert min(seen) >= 1_000_000 and len(set(seen)) == 3


def test_prompts_are_spread_over_all_themes(tmp_path: Path) -> None:
    config = ModelConfig.load(write_tiny_folder(tmp_path / "tiny"))
    lines = [json.loads(line) for line in quality.PROMPTS.read_text(encoding="utf-8").splitlines()]
    chosen = [subject["prompt"] for subject in subjects(config, 50)]
    themes = {line["theme"] for line in lines if line["prompt"] in chosen}
    assert len(set(chosen)) == 50
    assert themes == {line["theme"] for line in lines}


def test_classes_are_spread_too() -> None:
    config = ModelConfig(11, 64, 2, 1, 64, 8, 16, "class", num_classes=10)
    assert subjects(config, 4) == [{"label": 0}, {"label": 2}, {"label": 5}, {"label": 7}]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--widths", "1"], "at least 2"), (["--contexts", "copy"], "reuse or recompute")]
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.parse(arguments)
    assert message in capsys.readouterr().err


def test_without_its_packages_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise EnvironmentProblem(f"{name} is not installed")

    monkeypatch.setattr(quality, "Engine", None)  # must not be reached
    monkeypatch.setattr(quality, "imported", missing)
    assert quality.main(["--prompts", "2"]) == 2
    assert "error: torchmetrics is not installed" in capsys.readouterr().err
