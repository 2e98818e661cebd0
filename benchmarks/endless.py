"""What an endless panorama costs over one long request, and that its memory does not grow.

    python -m panoserve.benchmarks.endless --rows 64 --columns 4096

Speed: as many crops as `--crops` names, one crop high, drawn as one request and in segments of several lengths, in
turns; steps, seconds, codes a second (`--repeat 0` leaves it out). Memory: an endless run of rows x columns codes,
decoded as it goes, with the process's resident memory and the cache's free blocks after every segment; `--minutes` ends
it early, and what was measured until then is reported. Random weights of a small model, unless `--model` names a
folder. Text encoding and files are not in it. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from panoserve.benchmarks.machine import describe, load_average
from panoserve.benchmarks.results import Result, append_result, markdown, measured_on
from panoserve.configs.model import ModelConfig
from panoserve.serve.engine import Engine
from panoserve.serve.request import PanoramaRequest
from panoserve.vq.config import VQConfig
from panoserve.vq.endless import EndlessDecoder
from panoserve.vq.model import VQModel

SMALL = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=512,
    grid_side=16,
    downsample=8,
    condition="class",
    num_classes=10,
)
SMALL_VQ = VQConfig(channels=8, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1, z_channels=8, codebook_size=1024,
                    norm_groups=1)  # fmt: skip
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Speed:
    """As many crops, drawn in one request (segment None) or in segments of so many crops."""

    segment: int | None
    steps: int
    seconds: float
    codes_per_second: float
    load: float


@dataclass(frozen=True, slots=True)
class Memory:
    """The process after a segment of the endless run."""

    columns: int  # drawn so far
    resident_mib: float
    free_blocks: int
    seconds: float  # since the beginning


def subject(config: ModelConfig) -> dict[str, Any]:
    if config.condition == "class":
        return {"label": 1}
    return {"features": torch.zeros(8, config.caption_dim)}


def measure_speed(engine: Engine, crops: int, segment: int | None) -> Speed:
    """Draw `crops` crops of one band; the request is sampled, because its picture does not matter."""
    grid = engine.config.grid
    request = PanoramaRequest(**subject(engine.config), height=grid.crop_pixels, seed=0)
    columns = grid.side + (crops - 1) * grid.default_stride
    before, start = engine.steps, perf_counter()
    if segment is None:
        long = PanoramaRequest(
            **subject(engine.config), width=columns * grid.downsample, height=grid.crop_pixels, seed=0
        )
        engine.generate([long], decode=False, progress=False)
    else:
        for _ in engine.endless(request, crops=segment, limit=columns * grid.downsample):
            pass
    seconds = perf_counter() - start
    return Speed(segment, engine.steps - before, seconds, grid.side * columns / seconds, load_average())


def measure_memory(
    engine: Engine,
    vq: VQModel,
    rows: int,
    columns: int,
    crops: int,
    minutes: float | None,
    report: Callable[[str], None],
) -> list[Memory]:
    """Draw and decode rows x columns codes, or as many as there are after so many minutes; pictures are thrown away."""
    import psutil

    scheduler = engine._engine.engine_core.engine_core.scheduler
    grid, process = engine.config.grid, psutil.Process()
    request = PanoramaRequest(**subject(engine.config), height=rows * grid.downsample, seed=0)
    decoder, begun, samples = EndlessDecoder(vq, grid.side), perf_counter(), []
    for strip in engine.endless(request, crops=crops, limit=columns * grid.downsample):
        for _ in decoder.push(strip.codes):
            pass
        gc.collect()
        samples.append(
            Memory(
                columns=strip.start + strip.codes.shape[1],
                resident_mib=round(process.memory_info().rss / MIB, 1),
                free_blocks=scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
                seconds=round(perf_counter() - begun, 1),
            )
        )
        report(str(samples[-1]))
        if minutes is not None and samples[-1].seconds >= 60 * minutes:
            break
    return samples


def growth(samples: Sequence[Memory]) -> float | None:
    """MiB that resident memory grows by in 1,000 columns, by least squares over the second half of a run.

    The first half is left out, because a process takes its memory as it first needs it. None if there is too little.
    """
    later = samples[len(samples) // 2 :]
    if len(later) < 3:
        return None
    columns = torch.tensor([sample.columns / 1000 for sample in later], dtype=torch.float64)
    resident = torch.tensor([sample.resident_mib for sample in later], dtype=torch.float64)
    across, up = columns - columns.mean(), resident - resident.mean()
    return round(float((across * up).sum() / across.square().sum()), 3)


def measure(options: argparse.Namespace, report: Callable[[str], None]) -> Result:
    """Run everything; the whole result as one JSON-ready object."""
    with tempfile.TemporaryDirectory() as folder:
        load_format = "auto"
        if options.model is None:
            (Path(folder) / "config.json").write_text(json.dumps(SMALL.to_dict()), encoding="utf-8")
            options.model, load_format = Path(folder), "dummy"
        with Engine(options.model, dtype=options.dtype, load_format=load_format) as engine:
            vq = engine.vq if engine.folder.has_vq else VQModel(SMALL_VQ).eval().requires_grad_(False)
            speeds, samples = [], []
            for _ in range(options.repeat):
                for segment in (None, *options.segments):
                    speeds.append(measure_speed(engine, options.crops, segment))
                    report(str(speeds[-1]))
            if options.columns:
                samples = measure_memory(
                    engine, vq, options.rows, options.columns, options.segments[0], options.minutes, report
                )
            shape = asdict(engine.config)
    return {
        "benchmark": "endless",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "model": shape,
        "crops": options.crops,
        "rows": options.rows,
        "speed": [asdict(speed) for speed in speeds],
        "memory": [asdict(sample) for sample in samples],
        "mib_per_1000_columns": growth(samples),
    }


def tables(result: Result) -> str:
    """The result for people (Markdown)."""
    speeds = [
        [
            f"{speed['segment'] or 'one request of ' + str(result['crops'])}",
            f"{speed['steps']:,}",
            f"{speed['seconds']:.1f}",
            f"{speed['codes_per_second']:.0f}",
            f"{speed['load']}",
        ]
        for speed in result["speed"]
    ]
    memory = result["memory"]
    samples = [
        [f"{sample['columns']:,}", f"{sample['resident_mib']:,}", f"{sample['free_blocks']:,}", f"{sample['seconds']}"]
        for sample in memory[:: max(1, len(memory) // 8)]
    ]
    speed_table = markdown(["segment, crops", "steps", "seconds", "codes/s", "load"], speeds)
    memory_table = markdown(["columns drawn", "resident, MiB", "free KV blocks", "seconds"], samples, left=0)
    grown = ""
    if memory:
        last, slope = memory[-1], result["mib_per_1000_columns"]
        by = "too few samples" if slope is None else f"{slope:+.2f} MiB"
        grown = f"\n\n{last['columns']:,} columns in {last['seconds']} s; in the second half, a 1,000 columns: {by}"
    return f"{measured_on(result)}\n\n{speed_table}\n\n{memory_table}{grown}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.endless", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder (default: a small one, random weights)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--crops", type=int, default=96, help="crops of the speed runs")
    parser.add_argument(
        "--segments", type=int, nargs="+", default=[16, 8, 48], metavar="N", help="crops of a segment; the first draws "
        "the memory run"
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=2, help="rounds of the speed runs; 0 leaves them out")
    parser.add_argument("--rows", type=int, default=64, help="codes across the memory run")
    parser.add_argument("--columns", type=int, default=4096, help="codes along the memory run; 0 leaves it out")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="end the memory run after M minutes (default: never)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported
    result = measure(options, lambda line: print(line, file=sys.stderr, flush=True))
    if options.json is not None:
        append_result(options.json, result)
    print(tables(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
