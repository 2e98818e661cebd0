"""Codes per second of whole panoramas, beside a sequential baseline and the machine's ceilings, in one run.

    python -m panoserve.benchmarks.throughput --model-shape B --grid 32 --stride 24 --crops 5 --panoramas 1,4

Random weights of a published shape, class-conditional, guided. For every number of panoramas and every context the
engine draws them all, whole; before each such run the baseline is timed (single steps spread evenly over a crop,
scaled to all of its steps), because a shared machine drifts. Medians of the repeats. What is not covered: loading, VQ
decoding, text encoding, HTTP. docs/benchmarks.md explains the table; the last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from panoserve.benchmarks.baseline import SequentialSampler, count_passes, measure_step, random_weights
from panoserve.benchmarks.ceilings import Ceilings, panorama_work, slots_read
from panoserve.benchmarks.machine import describe, load_average
from panoserve.benchmarks.report import append_result, table
from panoserve.configs.grid import Canvas
from panoserve.configs.model import ModelConfig, size_presets
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.plan import CONTEXTS, Context
from panoserve.serve.engine import Engine
from panoserve.serve.request import PanoramaRequest


@dataclass(frozen=True, slots=True)
class Workload:
    """What is drawn, as on the command line."""

    model_shape: str = "B"
    grid: int = 32
    stride: int = 24
    crops: int = 5
    panoramas: tuple[int, ...] = (1, 4)
    contexts: tuple[Context, ...] = ("reuse", "recompute")
    dtype: str = "bfloat16"
    guidance: float = 4.0
    top_k: int = 2000
    repeat: int = 3

    @property
    def config(self) -> ModelConfig:
        """Class-conditional on 1000 classes, like the published checkpoints of this kind."""
        return ModelConfig.preset(
            self.model_shape, grid_side=self.grid, downsample=16, condition="class", num_classes=1000
        )

    @property
    def columns(self) -> int:
        return self.grid + (self.crops - 1) * self.stride

    def requests(self, panoramas: int, context: Context) -> list[PanoramaRequest]:
        grid = self.config.grid
        return [
            PanoramaRequest(
                label=index,
                width=self.columns * grid.downsample,
                height=grid.crop_pixels,
                stride=self.stride,
                guidance=self.guidance,
                top_k=self.top_k,
                seed=index,
                context=context,
            )
            for index in range(panoramas)
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the engine and the baseline's step just before it."""

    seconds: float
    steps: int
    drawn: int
    forward_tokens: int
    lanes: int
    baseline_step: float  # seconds of one sequential step of one panorama
    batched_step: float  # seconds of one sequential step of all panoramas as one batch
    load: float


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: medians of the runs of one number of panoramas in one context."""

    panoramas: int
    context: Context
    lanes: int
    steps: int
    drawn: int
    forward_tokens: int
    codes_per_second: float
    ms_per_step: float
    tokens_per_code: float
    baseline_codes_per_second: float
    batched_codes_per_second: float
    speedup: float  # over the sequential baseline
    speedup_over_batched: float  # over the baseline that draws all panoramas in lock-step
    floor_ms_per_step: float
    ceiling_fraction: float
    runs: tuple[Run, ...]


def measure(workload: Workload, report: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; the whole result as one JSON-ready object."""
    config, dtype = workload.config, getattr(torch, workload.dtype)
    most = max(workload.panoramas)
    weights = random_weights(config, dtype)
    samplers = {
        count: SequentialSampler(config, weights, torch.arange(count), guidance=workload.guidance, top_k=workload.top_k)
        for count in {1, *workload.panoramas}
    }
    rows = [2 * workload.crops * count for count in workload.panoramas]
    ceilings = Ceilings.measure(config, dtype, rows)
    report(f"ceilings: read {ceilings.bandwidth / 1e9:.1f} GB/s, matrix products {ceilings.peak / 1e9:.0f} GFLOP/s")
    runs: dict[tuple[int, Context], list[Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
        with Engine(folder, dtype=workload.dtype, load_format="dummy", max_lanes=most * workload.crops) as engine:
            for repeat in range(workload.repeat):
                for count in workload.panoramas:
                    for context in workload.contexts:
                        run = _run(engine, workload, count, context, samplers)
                        runs.setdefault((count, context), []).append(run)
                        report(
                            f"repeat {repeat + 1}: {count} x {context}: {run.drawn / run.seconds:.1f} codes/s in "
                            f"{run.seconds:.1f} s; sequential step {run.baseline_step * 1e3:.1f} ms; load {run.load}"
                        )
            # The ceilings again: the better of before and after, since a ceiling is what an undisturbed machine can do.
            ceilings = ceilings.best_of(Ceilings.measure(config, dtype, rows))
    cases = [_case(workload, ceilings, *key, values) for key, values in runs.items()]
    return {
        "benchmark": "throughput",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "workload": {**asdict(workload), "columns": workload.columns, "baseline": "24 sampled steps, scaled"},
        "ceilings": asdict(ceilings),
        "cases": [asdict(case) for case in cases],
    }


def _run(
    engine: Engine, workload: Workload, count: int, context: Context, samplers: dict[int, SequentialSampler]
) -> Run:
    baseline_step = measure_step(samplers[1])
    batched_step = measure_step(samplers[count]) if count > 1 else baseline_step
    steps_before = engine.steps
    start = perf_counter()
    panoramas = engine.generate(workload.requests(count, context), decode=False, progress=False)
    seconds = perf_counter() - start
    return Run(
        seconds=seconds,
        steps=engine.steps - steps_before,
        drawn=sum(panorama.stats.drawn for panorama in panoramas),
        forward_tokens=sum(panorama.stats.forward_tokens for panorama in panoramas),
        lanes=sum(panorama.stats.lanes for panorama in panoramas),
        baseline_step=baseline_step,
        batched_step=batched_step,
        load=load_average(),
    )


def _case(workload: Workload, ceilings: Ceilings, count: int, context: Context, runs: list[Run]) -> Case:
    config, first = workload.config, runs[0]
    passes = count_passes(workload.grid, workload.columns, workload.stride)
    seconds = statistics.median(run.seconds for run in runs)
    # Each panorama alone, one after another; and all of them in lock-step, each step a batch of 2 * count rows.
    sequential = passes.drawn / (passes.forwards * statistics.median(run.baseline_step for run in runs))
    batched = count * passes.drawn / (passes.forwards * statistics.median(run.batched_step for run in runs))
    plan = canvas_plan(Canvas(workload.grid, workload.columns), config.grid, workload.stride, context)
    itemsize = getattr(torch, workload.dtype).itemsize
    work = panorama_work(config, itemsize, first.steps, first.forward_tokens, count * slots_read(plan))
    rate = first.drawn / seconds
    return Case(
        panoramas=count,
        context=context,
        lanes=first.lanes,
        steps=first.steps,
        drawn=first.drawn,
        forward_tokens=first.forward_tokens,
        codes_per_second=rate,
        ms_per_step=1e3 * seconds / first.steps,
        tokens_per_code=first.forward_tokens / first.drawn,
        baseline_codes_per_second=sequential,
        batched_codes_per_second=batched,
        speedup=rate / sequential,
        speedup_over_batched=rate / batched,
        floor_ms_per_step=1e3 * ceilings.floor(work) / first.steps,
        ceiling_fraction=ceilings.floor(work) / seconds,
        runs=tuple(runs),
    )


def parse(arguments: Sequence[str]) -> tuple[Workload, Path | None]:
    """The command line; its defaults are Workload's."""
    default = Workload()
    parser = argparse.ArgumentParser(
        prog="python -m panoserve.benchmarks.throughput", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model-shape", default=default.model_shape, help=f"one of {', '.join(size_presets())}")
    parser.add_argument("--grid", type=int, default=default.grid, help="side of a crop in codes")
    parser.add_argument("--stride", type=int, default=default.stride, help="columns that each further crop adds")
    parser.add_argument("--crops", type=int, default=default.crops, help="crops of a panorama")
    parser.add_argument("--panoramas", default="1,4", help="how many are drawn at once; several, with commas")
    parser.add_argument("--context", default=",".join(default.contexts), help="reuse, recompute, or both with a comma")
    parser.add_argument("--dtype", default=default.dtype, choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--guidance", type=float, default=default.guidance)
    parser.add_argument("--top-k", type=int, default=default.top_k)
    parser.add_argument("--repeat", type=int, default=default.repeat)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    options = parser.parse_args(arguments)
    try:
        panoramas = tuple(int(count) for count in options.panoramas.split(","))
    except ValueError:
        parser.error(f"--panoramas is {options.panoramas!r}, expected numbers with commas, like 1,4")
    contexts = tuple(options.context.split(","))
    if not set(contexts) <= set(CONTEXTS):
        parser.error(f"--context is {options.context!r}, expected {' or '.join(CONTEXTS)}, or both with a comma")
    if min(*panoramas, options.crops, options.repeat, 1) < 1:
        parser.error("--panoramas, --crops and --repeat must be at least 1")
    if not 1 <= options.stride <= options.grid:
        parser.error(f"--stride is {options.stride}, expected 1 to {options.grid} (the grid side)")
    if options.model_shape.removeprefix("GPT-") not in {name.removeprefix("GPT-") for name in size_presets()}:
        parser.error(f"--model-shape is {options.model_shape!r}, expected one of {', '.join(size_presets())}")
    workload = Workload(
        model_shape=options.model_shape,
        grid=options.grid,
        stride=options.stride,
        crops=options.crops,
        panoramas=panoramas,
        contexts=contexts,
        dtype=options.dtype,
        guidance=options.guidance,
        top_k=options.top_k,
        repeat=options.repeat,
    )
    return workload, options.json


def main(arguments: Sequence[str] | None = None) -> int:
    workload, path = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported; the output here is the table
    result = measure(workload, lambda line: print(line, file=sys.stderr, flush=True))
    if path is not None:
        append_result(path, result)
    print(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
