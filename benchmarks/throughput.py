"""Codes per second of whole panoramas, beside a sequential baseline and the machine's ceilings, in one run.

    python -m panoserve.benchmarks.throughput --model-shape B --grid 32 --stride 24 --crops 5 --panoramas 1,4

Random weights of a published shape, guided. For every case (panoramas, width, stride, order, context) the engine draws
them all, whole; before each such run the baseline is timed (single steps spread evenly over a crop, scaled to all of
its steps), because a shared machine drifts. Medians of the repeats. What is not covered: VQ decoding, text encoding,
HTTP; start-up is startup.py's. docs/benchmarks.md explains the table; the last line of output is one JSON object.
"""

from __future__ import annotations

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

from panoserve.benchmarks.baseline import (
    SequentialSampler,
    caption_prefix,
    class_prefix,
    count_passes,
    measure_step,
    random_weights,
)
from panoserve.benchmarks.breakdown import parts_timed
from panoserve.benchmarks.ceilings import Ceilings, kv_bytes_per_slot, panorama_work, read_weights, slots_read
from panoserve.benchmarks.crops import draw_crops
from panoserve.benchmarks.machine import StolenTime, describe, load_average, resident_mib
from panoserve.benchmarks.results import Result, append_result
from panoserve.benchmarks.throughput_report import table
from panoserve.benchmarks.workload import Order, Task, Workload, caption, parse
from panoserve.configs.grid import Canvas
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.plan import Context
from panoserve.serve.engine import Engine


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
    stolen: float  # share of processor time that the host took while the engine drew


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: medians of the runs of one task."""

    panoramas: int
    columns: int
    stride: int
    context: Context
    order: Order
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
    weights_floor_ms: float  # of those: reading all weights once
    kv_floor_ms: float  # and reading the keys and values attended to, in the mean over all steps
    ceiling_fraction: float
    breakdown_ms: dict[str, float] | None  # of a step, by part; from one run more, with clocks
    runs: tuple[Run, ...]


def measure(workload: Workload, report: Callable[[str], None]) -> Result:
    """Run everything; the whole result as one JSON-ready object."""
    config, dtype = workload.config, getattr(torch, workload.dtype)
    tasks = list(workload.tasks())
    most = max(workload.lanes(task) for task in tasks)
    samplers = _samplers(workload, dtype)
    rows = [2 * lanes for lanes in {workload.lanes(task) for task in tasks}]
    ceilings = Ceilings.measure(config, dtype, rows)
    report(f"ceilings: read {ceilings.bandwidth / 1e9:.1f} GB/s, matrix products {ceilings.peak / 1e9:.0f} GFLOP/s")
    runs: dict[Task, list[Run]] = {}
    parts: dict[Task, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
        with Engine(
            folder, dtype=workload.dtype, load_format="dummy", max_lanes=most, kv_cache_dtype=workload.kv_cache_dtype
        ) as engine:
            for repeat in range(workload.repeat):
                for task in tasks:
                    run = _run(engine, workload, task, samplers)
                    runs.setdefault(task, []).append(run)
                    report(
                        f"repeat {repeat + 1}: {_name(task)}: {run.drawn / run.seconds:.1f} codes/s in "
                        f"{run.seconds:.1f} s; sequential step {run.baseline_step * 1e3:.1f} ms; "
                        f"load {run.load}, stolen {run.stolen:.0%}"
                    )
            if workload.breakdown:
                parts = {task: _breakdown(engine, workload, task) for task in tasks}
            memory = resident_mib()
            # The ceilings again: the better of before and after, since a ceiling is what an undisturbed machine can do.
            ceilings = ceilings.best_of(Ceilings.measure(config, dtype, rows))
    cases = [_case(workload, ceilings, task, values, parts.get(task)) for task, values in runs.items()]
    return {
        "benchmark": "throughput",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "workload": {**asdict(workload), "baseline": "24 sampled steps, scaled"},
        "ceilings": asdict(ceilings),
        "resident_mib": memory,  # of the process after the runs, the baseline's weights and caches included
        "cases": [asdict(case) for case in cases],
    }


def _name(task: Task) -> str:
    return f"{task.panoramas} x {task.columns} columns, stride {task.stride}, {task.order}, {task.context}"


def _samplers(workload: Workload, dtype: torch.dtype) -> dict[int, SequentialSampler]:
    """The baseline, for every number of panoramas at once."""
    config = workload.config
    weights = random_weights(config, dtype)
    samplers = {}
    for count in {1, *workload.panoramas}:
        if config.condition == "class":
            prefix = class_prefix(config, weights, torch.arange(count))
        else:
            features = [caption(config, workload.caption_rows, index) for index in range(count)]
            prefix = caption_prefix(weights, torch.stack(features))
        samplers[count] = SequentialSampler(config, weights, prefix, guidance=workload.guidance, top_k=workload.top_k)
    return samplers


def _draw(engine: Engine, workload: Workload, task: Task) -> list[Any]:
    requests = workload.requests(task)
    if task.order == "crops":
        return list(draw_crops(engine, requests))
    return list(engine.generate(requests, decode=False, progress=False))


def _run(engine: Engine, workload: Workload, task: Task, samplers: dict[int, SequentialSampler]) -> Run:
    baseline_step = measure_step(samplers[1])
    batched_step = measure_step(samplers[task.panoramas]) if task.panoramas > 1 else baseline_step
    steps_before = engine.steps
    stolen, start = StolenTime(), perf_counter()
    panoramas = _draw(engine, workload, task)
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
        stolen=stolen.share(),
    )


def _breakdown(engine: Engine, workload: Workload, task: Task) -> dict[str, float]:
    """Milliseconds of a step in each part, in the mean over a run."""
    steps_before = engine.steps
    with parts_timed(engine) as watch:
        _draw(engine, workload, task)
    return {part: 1e3 * seconds / (engine.steps - steps_before) for part, seconds in watch.seconds.items()}


def _case(
    workload: Workload,
    ceilings: Ceilings,
    task: Task,
    runs: list[Run],
    parts: dict[str, float] | None,
) -> Case:
    config, first = workload.config, runs[0]
    passes = count_passes(workload.grid, task.columns, task.stride)
    seconds = statistics.median(run.seconds for run in runs)
    # Each panorama alone, one after another; and all of them in lock-step, each step a batch of 2 * count rows.
    sequential = passes.drawn / (passes.forwards * statistics.median(run.baseline_step for run in runs))
    batched = task.panoramas * passes.drawn / (passes.forwards * statistics.median(run.batched_step for run in runs))
    plan = canvas_plan(Canvas(workload.grid, task.columns), config.grid, task.stride, task.context)
    itemsize = getattr(torch, workload.dtype).itemsize
    slots = task.panoramas * slots_read(plan, workload.prefix_rows)
    kv_itemsize = itemsize if workload.kv_cache_dtype == "auto" else 1
    work = panorama_work(config, itemsize, kv_itemsize, first.steps, first.forward_tokens, slots)
    rate = first.drawn / seconds
    return Case(
        **asdict(task),
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
        weights_floor_ms=1e3 * read_weights(config) * itemsize / ceilings.bandwidth,
        kv_floor_ms=1e3 * slots * kv_bytes_per_slot(config, kv_itemsize) / ceilings.bandwidth / first.steps,
        ceiling_fraction=ceilings.floor(work) / seconds,
        breakdown_ms=parts,
        runs=tuple(runs),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    workload, path = parse(sys.argv[1:] if arguments is None else arguments, __doc__.split("\n")[0])
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported; the output here is the table
    result = measure(workload, lambda line: print(line, file=sys.stderr, flush=True))
    if path is not None:
        append_result(path, result)
    print(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
