"""What pictures and files cost beside codes: `panoserve batch` against the engine that draws the same and no more.

    python -m panoserve.benchmarks.batch --model DIR --jobs 48 --repeat 3

Three ways, in turns, on one engine: *raw* draws the requests and throws the codes away, *pictures* also decodes every
one as it is finished, as `Engine.generate` does, and *batch* writes them with their sidecars besides
(panoserve/batch.py). Prompts are spread over the prompt set. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from panoserve.benchmarks.machine import StolenTime, describe, load_average
from panoserve.benchmarks.results import Result, append_result, markdown, measured_on, stolen_by_host

if TYPE_CHECKING:
    from panoserve.serve.engine import Engine
    from panoserve.serve.request import PanoramaRequest

    Way = Callable[[Engine, Sequence[PanoramaRequest]], float]


def draw_raw(engine: Engine, requests: Sequence[PanoramaRequest], decode: bool = False) -> float:
    """Draw, decode if asked to, and drop; seconds."""
    begun = perf_counter()
    for _, result in engine.draw(requests):
        if isinstance(result, Exception):
            raise result
        if decode:
            engine.picture(result)
    return perf_counter() - begun


def draw_files(engine: Engine, requests: Sequence[PanoramaRequest]) -> float:
    """The same as a batch with files; seconds from the first request to the last file."""
    from panoserve.batch import Ledger, Settings, draw_batch, plan_batch
    from panoserve.jobs import Job

    jobs = [Job(number, str(number), request, None) for number, request in enumerate(requests, start=1)]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder))
        settings = Settings(engine.folder, "reuse", "bfloat16")
        tasks, report = plan_batch(jobs, settings, ledger, resume=False)
        done = draw_batch(engine, tasks, ledger, report)
        if done.done != len(requests):
            raise RuntimeError(f"{done.failed} of {len(requests)} jobs failed; see the errors of a `panoserve batch`")
        return done.seconds


def timed(draw: Way, engine: Engine, requests: Sequence[PanoramaRequest]) -> tuple[float, float]:
    """Seconds of one way of drawing, and the share of processor time stolen meanwhile."""
    stolen = StolenTime()
    return draw(engine, requests), stolen.share()


def measure(options: argparse.Namespace) -> Result:
    from panoserve.benchmarks.quality import subjects
    from panoserve.serve.engine import Engine
    from panoserve.serve.request import PanoramaRequest

    ways: dict[str, Way] = {"raw": draw_raw, "pictures": partial(draw_raw, decode=True), "batch": draw_files}
    rates: dict[str, list[float]] = {name: [] for name in ways}  # codes a second, of every repeat
    stolen: list[list[float]] = []  # of every repeat, way by way
    with Engine(options.model) as engine:
        width, height = options.size or (3 * engine.config.grid.crop_pixels, engine.config.grid.crop_pixels)
        requests = [
            PanoramaRequest(width=width, height=height, seed=seed, **subject)
            for seed, subject in enumerate(subjects(engine.config, options.jobs))
        ]
        codes = sum(canvas.rows * canvas.columns for canvas in (request.canvas(engine.config) for request in requests))
        draw_files(engine, requests[:2])  # loads the decoder, and what a first drawing sets up
        for _ in range(options.repeat):
            stolen.append([])
            for name, draw in ways.items():
                seconds, share = timed(draw, engine, requests)
                rates[name].append(round(codes / seconds, 1))
                stolen[-1].append(share)
                print(f"{name} {rates[name][-1]} codes/s, stolen {share:.0%}", file=sys.stderr, flush=True)
    return {
        "benchmark": "batch",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "load": load_average(),
        "workload": {
            "model": options.model.name, "size": f"{width}x{height}", "jobs": options.jobs, "repeat": options.repeat
        },
        **rates,
        "stolen": stolen,
    }  # fmt: skip


def table(result: Result) -> str:
    """The result for people (Markdown); the ratio is the median of the repeats' own."""
    workload = result["workload"]
    shares = [share for pair in result.get("stolen", ()) for share in pair]
    what = f"model {workload['model']}, {workload['jobs']} jobs, {workload['size']}"
    head = f"Workload: {what}; load {result['load']}{stolen_by_host(shares)}  "
    rows = []
    for name, way in (("codes alone", "raw"), ("decoded", "pictures"), ("batch", "batch")):
        if way in result:  # earlier runs did not draw all three
            ratio = statistics.median(rate / raw for raw, rate in zip(result["raw"], result[way], strict=True))
            rates = result[way]
            rows.append([name, f"{statistics.median(rates):,.1f}", ", ".join(map(str, rates)), f"{ratio:.2f}"])
    return f"{head}\n{measured_on(result)}\n\n{markdown(['way', 'codes/s', 'every run', 'ratio'], rows)}"


def size(text: str) -> tuple[int, int]:
    """`576x192` as (576, 192)."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT in pixels, such as 576x192")
    return int(width), int(height)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure batches of pictures beside the engine alone.")
    parser.add_argument("--model", type=Path, default=Path("assets/pano-mini"), metavar="DIR")
    parser.add_argument("--jobs", type=int, default=48, metavar="N")
    parser.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: three crops by one)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    options = parser.parse_args(arguments)
    result = measure(options)
    if options.json is not None:
        append_result(options.json, result)
    print(table(result))
    print(json.dumps(result))


def in_child(model: Path, jobs: int, size: str) -> dict[str, Any]:
    """The result of a run in a process of its own (an engine stays with its process)."""
    import subprocess

    command = [sys.executable, "-m", "panoserve.benchmarks.batch", "--model", str(model), "--jobs", str(jobs)]
    answer = subprocess.run(
        [*command, "--size", size, "--repeat", "1"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    result: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
