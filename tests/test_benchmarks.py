"""The baseline against the reference model, the arithmetic of the ceilings, and the benchmark with a fake engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch

from panoserve.benchmarks import ceilings as ceilings_module
from panoserve.benchmarks import throughput
from panoserve.benchmarks.baseline import (
    SequentialSampler,
    count_passes,
    draw_panorama,
    measure_step,
    random_weights,
)
from panoserve.benchmarks.ceilings import (
    Ceilings,
    Work,
    kv_bytes_per_slot,
    panorama_work,
    read_weights,
    slots_read,
)
from panoserve.benchmarks.report import append_result
from panoserve.benchmarks.throughput import Workload, parse
from panoserve.configs.grid import Canvas, Grid
from panoserve.configs.model import ModelConfig
from panoserve.models.reference import ReferenceLane, ReferenceModel
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.plan import Copy, Lane
from panoserve.redirect.simulate import draw_plan, predict
from panoserve.serve.request import PanoramaRequest

TINY = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    grid_side=5,
    downsample=16,
    condition="class",
    num_classes=7,
)
GUIDANCE = 2.5


class ReferenceDrawer:
    """A guided greedy lane of the plain reference model, as simulate.py drives it."""

    def __init__(self, model: ReferenceModel, label: int) -> None:
        self.lane = ReferenceLane(model, model.cls_embedding(torch.tensor([label, TINY.num_classes])))

    def feed(self, codes: list[int]) -> int:
        conditional, unconditional = self.lane.feed(codes)
        return int((unconditional + GUIDANCE * (conditional - unconditional)).argmax())

    def copy_prefix(self, parent: Self) -> None:
        raise AssertionError("context recompute copies nothing")

    def copy(self, parent: Self, copy: Copy, shift: tuple[int, int]) -> None:
        raise AssertionError("context recompute copies nothing")


@pytest.mark.parametrize(("columns", "stride"), [(5, 4), (12, 4), (11, 2), (13, 5)])
@torch.inference_mode()
def test_baseline_draws_what_the_reference_draws(columns: int, stride: int) -> None:
    """Float32, greedy, guided, two panoramas in lock-step: every code equal; one crop, three, four, and no overlap."""
    weights = random_weights(TINY, torch.float32, seed=3)
    weights = {name: 8 * tensor if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    model = ReferenceModel(TINY).eval()
    model.load_state_dict(weights)
    labels = torch.tensor([1, 4])
    sampler = SequentialSampler(TINY, weights, labels, guidance=GUIDANCE, temperature=0)
    drawn = draw_panorama(sampler, columns, stride)

    plan = canvas_plan(Canvas(5, columns), TINY.grid, stride, "recompute")
    for label, codes in zip(labels.tolist(), drawn.tolist(), strict=True):

        def new_lane(lane: Lane, label: int = label) -> ReferenceDrawer:
            return ReferenceDrawer(model, label)

        assert codes == draw_plan(plan, new_lane)
    assert len(drawn.unique()) > 5  # not a degenerate model that repeats one code


def test_baseline_counts_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = SequentialSampler(TINY, random_weights(TINY, torch.float32), torch.arange(1))
    passes = 0
    forward = SequentialSampler._forward

    def counting(self: SequentialSampler, x: torch.Tensor, slot: int) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return forward(self, x, slot)

    monkeypatch.setattr(SequentialSampler, "_forward", counting)
    draw_panorama(sampler, 12, 4)
    assert passes == count_passes(5, 12, 4).forwards


def test_passes_of_the_published_method() -> None:
    """facts.md 6.2: 13,215 passes for twelve extensions, to which the first condition pass is added here."""
    assert count_passes(32, 32 + 12 * 24, 24).forwards == 13_215 + 1
    assert count_passes(32, 32 + 4 * 24, 24).forwards == 1024 + 4 * 1016
    assert count_passes(32, 32 + 4 * 24, 24).drawn == 4096


def test_steps_are_sampled_evenly_over_a_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    monkeypatch.setattr(SequentialSampler, "step", lambda self, codes, place: places.append(place))
    sampler = SequentialSampler(TINY, random_weights(TINY, torch.float32), torch.arange(1))
    assert measure_step(sampler, samples=5) > 0
    assert places[1:] == [2, 7, 12, 17, 22]


def test_top_k_sampling_never_leaves_the_top_k() -> None:
    sampler = SequentialSampler(TINY, random_weights(TINY, torch.float32), torch.arange(1), top_k=3)
    logits = torch.randn(1, TINY.vocab_size)
    allowed = set(logits.topk(3).indices[0].tolist())
    assert {int(sampler._sample(logits)) for _ in range(200)} == allowed


def test_bytes_and_weights_are_those_of_the_fact_sheet() -> None:
    """facts.md 1.1 (parameters, less embeddings and norms) and 7.9 (KV bytes of one sequence, in bfloat16)."""
    for size, parameters, kv_bytes in (("B", 110_888_448, 36_864), ("XL", 774_699_520, 184_320)):
        config = ModelConfig.preset(size, grid_side=32, downsample=16, condition="class", num_classes=1000)
        d = config.hidden_size
        embeddings_and_norms = (16384 + 1001) * d + (2 * config.num_hidden_layers + 1) * d
        assert read_weights(config) == parameters - embeddings_and_norms
        assert kv_bytes_per_slot(config, 2) == 2 * kv_bytes


def test_slots_read_by_hand() -> None:
    """g = 2, c = 1, two crops, one condition row. First crop: 1+2+3+4. Second: row 0 ends on slots 2 (and 3 to settle
    in reuse), row 1 on slot 4."""
    grid = Grid(2, 16)
    canvas = Canvas(2, 3)
    assert slots_read(canvas_plan(canvas, grid, 1, "recompute")) == 10 + 2 + 4
    wide = Grid(4, 16)
    reuse = slots_read(canvas_plan(Canvas(4, 6), wide, 2, "reuse"))
    recompute = slots_read(canvas_plan(Canvas(4, 6), wide, 2, "recompute"))
    assert recompute == sum(range(1, 17)) + sum(1 + 4 * row + 2 + step for row in range(4) for step in range(2))
    assert reuse - recompute == sum(1 + 4 * row + 4 for row in range(3))  # one step more in each row but the last


def test_floor_is_the_slower_of_reading_and_computing() -> None:
    ceilings = Ceilings(bandwidth=10.0, peak=100.0, flops_by_rows={64: 100.0})
    assert ceilings.floor(Work(bytes=50, flops=100)) == 5
    assert ceilings.floor(Work(bytes=5, flops=100)) == 1
    assert ceilings.best_of(Ceilings(20.0, 50.0, {64: 50.0})) == Ceilings(20.0, 100.0, {64: 100.0})
    work = panorama_work(TINY, 2, steps=3, forward_tokens=7, slots=11)
    assert work.bytes == 3 * read_weights(TINY) * 2 + 11 * 2 * 2 * 2 * 32 * 2
    assert work.flops == 4 * read_weights(TINY) * 7


class FakeEngine:
    """Answers at once, with the counters of an ideal engine."""

    def __init__(self, model_dir: str, **options: Any) -> None:
        self.config = ModelConfig.load(model_dir)
        self.steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def generate(self, requests: Sequence[PanoramaRequest], decode: bool, progress: bool) -> list[SimpleNamespace]:
        predictions = []
        for request in requests:
            resolved = request.resolve(self.config)
            plan = canvas_plan(resolved.canvas(self.config), self.config.grid, resolved.stride, resolved.context)  # type: ignore[arg-type]
            predictions.append(predict(plan, 1))
        self.steps += max(prediction.steps for prediction in predictions)
        return [SimpleNamespace(stats=prediction) for prediction in predictions]


def test_benchmark_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command on a tiny model and a fake engine: counts, ratios, table and both JSON outputs agree."""
    monkeypatch.setattr(throughput, "Engine", FakeEngine)
    monkeypatch.setattr(Workload, "config", TINY)
    monkeypatch.setattr(ceilings_module, "READ_BYTES", 2**16)
    out = tmp_path / "results.jsonl"
    arguments = ["--grid", "5", "--stride", "4", "--crops", "3", "--dtype", "float32", "--top-k", "20", "--repeat", "2"]
    assert throughput.main([*arguments, "--panoramas", "1,2", "--json", str(out)]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    result = json.loads(printed[-1])
    assert json.loads(out.read_text()) == result
    assert [(case["panoramas"], case["context"]) for case in result["cases"]] == [
        (1, "reuse"), (1, "recompute"), (2, "reuse"), (2, "recompute"),
    ]  # fmt: skip
    single, _, double, exact = result["cases"]
    assert single["drawn"] == 5 * 13
    assert double["drawn"] == 2 * 5 * 13
    assert exact["steps"] == 25 + 2 * 4
    assert exact["lanes"] == 6
    for case in result["cases"]:
        assert len(case["runs"]) == 2
        assert case["speedup"] == pytest.approx(case["codes_per_second"] / case["baseline_codes_per_second"])
        assert f"| {case['codes_per_second']:.1f} |" in "\n".join(printed)
    assert any(line.startswith("Machine: ") and result["machine"]["commit"] in line for line in printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--panoramas", "1;4"], "numbers with commas"),
        (["--context", "reuse,copy"], "reuse or recompute"),
        (["--stride", "33"], "expected 1 to 32"),
        (["--model-shape", "M"], "GPT-XXL"),
        (["--crops", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_results_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    append_result(path, {"a": 1})
    append_result(path, {"b": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}]
