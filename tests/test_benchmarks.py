"""The baseline against the reference model, the arithmetic of the ceilings, and the benchmark with a fake engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch

from panoserve.benchmarks import ceilings as ceilings_module
from panoserve.benchmarks import throughput
from panoserve.benchmarks.baseline import (
    SequentialSampler,
    caption_prefix,
    class_prefix,
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
from panoserve.benchmarks.machine import StolenTime
from panoserve.benchmarks.workload import Task, Workload, parse
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
TINY_CAPTIONS = replace(TINY, condition="caption", num_classes=0, caption_dim=6, caption_length=4)
GUIDANCE = 2.5


class ReferenceDrawer:
    """A guided greedy lane of the plain reference model, as simulate.py drives it; prefix [2, L, D]."""

    def __init__(self, model: ReferenceModel, prefix: torch.Tensor) -> None:
        self.lane = ReferenceLane(model, prefix)

    def feed(self, codes: list[int]) -> int:
        conditional, unconditional = self.lane.feed(codes)
        return int((unconditional + GUIDANCE * (conditional - unconditional)).argmax())

    def copy_prefix(self, parent: Self) -> None:
        raise AssertionError("context recompute copies nothing")

    def copy(self, parent: Self, copy: Copy, shift: tuple[int, int]) -> None:
        raise AssertionError("context recompute copies nothing")


def loud(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights large enough that greedy choices are far apart."""
    return {name: 8 * tensor if tensor.dim() == 2 else tensor for name, tensor in weights.items()}


def check_against_reference(
    config: ModelConfig, weights: dict[str, torch.Tensor], prefix: torch.Tensor, columns: int, stride: int
) -> None:
    """Two panoramas in lock-step draw what two reference lanes draw; prefix [4, L, D]."""
    model = ReferenceModel(config).eval()
    model.load_state_dict(weights)
    drawn = draw_panorama(SequentialSampler(config, weights, prefix, guidance=GUIDANCE, temperature=0), columns, stride)
    plan = canvas_plan(Canvas(5, columns), config.grid, stride, "recompute")
    for index, codes in enumerate(drawn.tolist()):

        def new_lane(lane: Lane, index: int = index) -> ReferenceDrawer:
            return ReferenceDrawer(model, prefix[[index, index + 2]])

        assert codes == draw_plan(plan, new_lane)
    assert len(drawn.unique()) > 5  # not a degenerate model that repeats one code


@pytest.mark.parametrize(("columns", "stride"), [(5, 4), (12, 4), (11, 2), (13, 5)])
@torch.inference_mode()
def test_baseline_draws_what_the_reference_draws(columns: int, stride: int) -> None:
    """Float32, greedy, guided: every code equal; one crop, three, four, and no overlap."""
    weights = loud(random_weights(TINY, torch.float32, seed=3))
    prefix = class_prefix(TINY, weights, torch.tensor([1, 4]))
    model = ReferenceModel(TINY)
    model.load_state_dict(weights)
    assert prefix.equal(model.cls_embedding(torch.tensor([1, 4, TINY.num_classes, TINY.num_classes])))
    check_against_reference(TINY, weights, prefix, columns, stride)


@torch.inference_mode()
def test_baseline_draws_what_the_reference_draws_of_captions() -> None:
    weights = loud(random_weights(TINY_CAPTIONS, torch.float32, seed=3))
    features = torch.randn(2, 3, TINY_CAPTIONS.caption_dim, generator=torch.Generator().manual_seed(1))
    prefix = caption_prefix(weights, features)
    embedder = ReferenceModel(TINY_CAPTIONS).cls_embedding
    embedder.load_state_dict(
        {name.removeprefix("cls_embedding."): w for name, w in weights.items() if name.startswith("cls_embedding.")}
    )
    torch.testing.assert_close(prefix[:2], embedder(features))
    torch.testing.assert_close(prefix[2:], embedder.unconditional(3).expand(2, -1, -1))
    check_against_reference(TINY_CAPTIONS, weights, prefix, 12, 4)


def tiny_sampler(**options: Any) -> SequentialSampler:
    weights = random_weights(TINY, torch.float32)
    return SequentialSampler(TINY, weights, class_prefix(TINY, weights, torch.arange(1)), **options)


def test_baseline_counts_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler()
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
    sampler = tiny_sampler()
    assert measure_step(sampler, samples=5) > 0
    assert places[1:] == [2, 7, 12, 17, 22]


def test_top_k_sampling_never_leaves_the_top_k() -> None:
    sampler = tiny_sampler(top_k=3)
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
    work = panorama_work(TINY, 2, 2, steps=3, forward_tokens=7, slots=11)
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
    assert "Workload: GPT-B float32, class, grid 5," in printed[0]
    assert single["drawn"] == 5 * 13
    assert double["drawn"] == 2 * 5 * 13
    assert exact["steps"] == 25 + 2 * 4
    assert exact["lanes"] == 6
    for case in result["cases"]:
        assert len(case["runs"]) == 2
        assert case["speedup"] == pytest.approx(case["codes_per_second"] / case["baseline_codes_per_second"])
        assert f"| {case['codes_per_second']:.1f} (" in "\n".join(printed)
        assert case["weights_floor_ms"] + case["kv_floor_ms"] <= case["floor_ms_per_step"] * 1.000001
    assert any(line.startswith("Machine: ") and result["machine"]["commit"] in line for line in printed)
    assert any("`reuse` over `recompute`" in line for line in printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--panoramas", "1;4"], "numbers with commas"),
        (["--context", "reuse,copy"], "reuse or recompute"),
        (["--stride", "33"], "expected 1 to 32"),
        (["--model-shape", "M"], "GPT-XXL"),
        (["--crops", "0"], "at least 1"),
        (["--order", "wavefront,rows"], "wavefront or crops"),
        (["--crops", "3", "--width", "4"], "not allowed with"),
        (["--caption-rows", "121"], "1 to 120"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(arguments, "about")
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_tasks_are_every_combination_that_makes_sense() -> None:
    arguments = ["--grid", "4", "--stride", "2,4", "--width", "2,5", "--order", "wavefront,crops", "--panoramas", "3"]
    workload, path = parse(arguments, "about")
    assert path is None
    tasks = list(workload.tasks())
    assert len(tasks) == len(set(tasks)) == 2 * 2 * 3  # crop after crop has one context only
    assert Task(3, 20, 2, "recompute", "crops") in tasks
    assert {(task.columns, task.stride): workload.lanes(task) for task in tasks} == {
        (8, 2): 9, (20, 2): 27, (8, 4): 6, (20, 4): 15,
    }  # fmt: skip
    assert next(iter(replace(workload, widths=(), crops=(3,)).tasks())).columns == 8


def test_captions_have_the_rows_that_were_asked_for() -> None:
    workload, _ = parse(["--condition", "caption", "--caption-rows", "7", "--panoramas", "2"], "about")
    requests = workload.requests(next(workload.tasks()))
    assert [request.resolve(workload.config).features.shape for request in requests] == [(7, 2048)] * 2  # type: ignore[union-attr]
    assert not requests[0].features.equal(requests[1].features)  # type: ignore[union-attr, arg-type]
    assert workload.prefix_rows == 7


def test_stolen_time_is_a_share_of_what_was_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([(10.0, 100.0), (12.0, 106.0), (10.0, 100.0), (10.0, 107.0)])
    monkeypatch.setattr("panoserve.benchmarks.machine._processor_seconds", lambda: next(seconds))
    assert StolenTime().share() == 0.25
    assert StolenTime().share() == 0
