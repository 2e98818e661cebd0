"""How long an engine takes from nothing to the first row of a picture, and the memory that it holds.

    python -m panoserve.benchmarks.startup --model DIR --repeat 3

Every start is a process of its own: Python and imports, then the engine (vLLM, weights, packing, KV cache), then the
first row of a one-crop picture; then as many crops as `--lanes` at once. The first start of a machine also reads the
files from disk. Random weights of a published shape, unless `--model` names a folder. The last line of output is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from panoserve.benchmarks.machine import describe, load_average, resident_mib
from panoserve.benchmarks.results import Result, append_result, markdown, measured_on


@dataclass(frozen=True, slots=True)
class Start:
    """One start; seconds since the process was begun, and memory of the process."""

    imported: float
    engine: float  # ready for requests
    first_row: float
    imported_mib: float
    engine_mib: float
    drawn_mib: float  # with as many crops drawn at once as the engine takes
    cache_mib: float  # the KV cache, which is a part of engine_mib as far as its pages were touched
    load: float


def start(options: argparse.Namespace) -> Start:
    """In the child: start, draw, and say when each was done. `options.begun` is the parent's clock."""

    def now() -> float:
        return time.time() - options.begun

    import torch

    from panoserve.serve.engine import Engine
    from panoserve.serve.request import PanoramaRequest
    from panoserve.serve.settings import set_environment

    set_environment()
    import vllm  # noqa: F401  (the most of all imports; the engine would import it)

    imported, imported_mib = now(), resident_mib()
    with ExitStack() as stack:
        folder, load_format = options.model, "auto"
        if folder is None:
            from panoserve.benchmarks.workload import Workload

            config = Workload(model_shape=options.model_shape, grid=options.grid).config
            folder, load_format = Path(stack.enter_context(tempfile.TemporaryDirectory())), "dummy"
            (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
        engine = stack.enter_context(
            Engine(folder, dtype=options.dtype, load_format=load_format, max_lanes=options.lanes)
        )
        ready, engine_mib = now(), resident_mib()
        config = engine.config
        subject = {"label": 1} if config.condition == "class" else {"features": torch.zeros(8, config.caption_dim)}
        pixels = config.grid.crop_pixels
        requests = [
            PanoramaRequest(width=pixels, height=pixels, seed=seed, **subject)  # type: ignore[arg-type]
            for seed in range(options.lanes)
        ]
        first_row: list[float] = []
        for _ in engine.draw(requests[:1], advance=lambda codes: first_row.append(now()) if codes else None):
            pass
        engine.generate(requests, decode=False, progress=False)
        cache = engine.vllm_config.cache_config.kv_cache_memory_bytes or 0
        return Start(
            imported=round(imported, 2),
            engine=round(ready, 2),
            first_row=round(first_row[0], 2),
            imported_mib=imported_mib,
            engine_mib=engine_mib,
            drawn_mib=resident_mib(),
            cache_mib=round(cache / 2**20, 1),
            load=load_average(),
        )


def start_in_child(arguments: Sequence[str]) -> Start:
    """One start in a process of its own."""
    command = [sys.executable, "-m", "panoserve.benchmarks.startup", *arguments, "--begun", str(time.time())]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Start(**json.loads(answer.splitlines()[-1]))


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Result:
    """Start as often as asked; the whole result as one JSON-ready object."""
    starts = []
    for number in range(options.repeat):
        starts.append(asdict(start_in_child(arguments)))
        print(f"start {number + 1}: {starts[-1]}", file=sys.stderr, flush=True)
    name = options.model.name if options.model else f"GPT-{options.model_shape.removeprefix('GPT-')}"
    workload = {"model": name, "grid": options.grid, "dtype": options.dtype, "lanes": options.lanes}
    return {
        "benchmark": "startup",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "workload": {**workload, "repeat": options.repeat},
        "starts": starts,
    }


def row(result: Result) -> list[str]:
    """The line of the table: medians of all starts."""

    def median(name: str) -> float:
        return statistics.median(start[name] for start in result["starts"])

    workload = result["workload"]
    return [
        f"{workload['model']}, {workload['dtype']}, {workload['lanes']} lanes",
        *(f"{median(name):.1f}" for name in ("imported", "engine", "first_row")),
        *(f"{median(name):,.0f}" for name in ("imported_mib", "engine_mib", "drawn_mib", "cache_mib")),
        f"{max(start['load'] for start in result['starts']):.1f}",
    ]


def table(results: Sequence[Result]) -> str:
    """Results of several models for people (Markdown)."""
    header = ["model", "imported, s", "engine ready, s", "first row, s", "imported, MiB", "engine, MiB", "drawn, MiB",
              "KV cache, MiB", "load"]  # fmt: skip
    return f"{measured_on(results[-1])}\n\n{markdown(header, [row(result) for result in results])}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder (default: random weights)")
    parser.add_argument("--model-shape", default="B", help="a published size, for random weights")
    parser.add_argument("--grid", type=int, default=32, help="side of a crop in codes, for random weights")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--lanes", type=int, default=16, help="crops that the engine draws at once")
    parser.add_argument("--repeat", type=int, default=3, help="starts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)  # this is a child, begun then
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported
    if options.begun is not None:
        print(json.dumps(asdict(start(options))))
        return 0
    result = measure(options, arguments)
    if options.json is not None:
        append_result(options.json, result)
    print(table([result]))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
