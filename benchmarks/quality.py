"""How good panoramas are, as far as numbers say: likeness of their crops, visibility of borders, distance to real ones.

    python -m panoserve.benchmarks.quality --strides 3,6,12,18,24 --widths 4 --contexts reuse --prompts 100

One line of JSON for every stride, width and context, as soon as it is measured: 95 % intervals over prompts, which are
spread evenly over benchmarks/prompts (class-conditional models: over the classes). A stride of a whole crop gives
nothing to the next crop: independent crops, the control. "Real" crops are windows of landscapes that train/scenes draws
and no model was trained on. Needs requirements/bench.txt; docs/benchmarks.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panoserve.benchmarks.frechet import FEATURES, Features, frechet_distance
from panoserve.benchmarks.intervals import bootstrap
from panoserve.benchmarks.machine import describe, load_average
from panoserve.benchmarks.packages import imported
from panoserve.benchmarks.perceptual import STLPIPS
from panoserve.benchmarks.pictures import chosen_windows, measure_picture, summarize
from panoserve.benchmarks.quality_report import table
from panoserve.benchmarks.results import Result, append_result
from panoserve.cli_files import fingerprint_model
from panoserve.cli_model import open_folder
from panoserve.configs.model import ModelConfig
from panoserve.errors import PanoserveError
from panoserve.redirect.layout import plan_of
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.engine import Engine
from panoserve.serve.request import PanoramaRequest

PROMPTS = Path(__file__).resolve().parent / "prompts" / "panoramas.jsonl"
HELD_OUT = 10_000_000  # the first scene: training begins at 0 (train/render.py)
RESAMPLES = 200  # of the Frechet distance, each of which costs a decomposition


@dataclass(frozen=True, slots=True)
class Variant:
    """One line of the tables."""

    stride: int  # columns
    width: int  # crops side by side
    context: str


def subjects(config: ModelConfig, count: int, prompts: Path = PROMPTS) -> list[dict[str, Any]]:
    """What the pictures show: `count` prompts, or classes, spread evenly over all of them."""
    if config.condition == "class":
        return [{"label": index * config.num_classes // count} for index in range(count)]
    lines = prompts.read_text(encoding="utf-8").splitlines()
    return [{"prompt": json.loads(lines[index * len(lines) // count])["prompt"]} for index in range(count)]


def held_out_windows(side: int, scenes: int) -> Tensor:
    """Windows of landscapes that no model has seen, two a scene: [2 * scenes, 3, side, side] in [0, 1]."""
    from panoserve.train.render import render_scene

    def scene(number: int) -> Tensor:
        return chosen_windows(resized(render_scene(HELD_OUT + number), side), side, number)

    return torch.cat([scene(number) for number in range(scenes)])


def resized(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] at a height of `side` pixels."""
    from PIL import Image

    if image.shape[0] == side:
        return image
    width = round(image.shape[1] * side / image.shape[0])
    return np.asarray(Image.fromarray(image).resize((width, side), Image.Resampling.LANCZOS))


class Quality:
    """The engine, the networks, and what real crops look like to them."""

    def __init__(self, engine: Engine, scenes: int, report: Callable[[str], None]) -> None:
        self.engine, self.report = engine, report
        self.side = engine.config.grid.crop_pixels
        self.distance, self.features = STLPIPS.load(), Features()
        imported("torchmetrics")
        report(f"rendering {2 * scenes} held-out landscapes")
        # As many crops again: how far apart two sets of real crops are is the least that can be reached.
        real = self.features(held_out_windows(self.side, 2 * scenes))
        self.real, others = real[: 2 * scenes], real[2 * scenes :]
        self.floor = frechet_distance(self.real, others)

    def measure(self, variant: Variant, count: int, seed: int) -> dict[str, Any]:
        """Draw and measure `count` panoramas of one variant."""
        engine, config = self.engine, self.engine.config
        requests = [
            PanoramaRequest(
                **subject,
                width=variant.width * self.side,
                height=self.side,
                stride=variant.stride,
                context=variant.context,
                seed=seed + index,
            )
            for index, subject in enumerate(subjects(config, count))
        ]
        steps, start = engine.steps, perf_counter()
        drawn = engine.generate(requests, decode=False, progress=False)
        seconds = perf_counter() - start
        images = [np.asarray(engine.picture(panorama)) for panorama in drawn]
        plan = plan_of(drawn[0].request.engine_args(config), config.grid)
        measured = [measure_picture(image, plan, self.side, self.distance) for image in images]
        crops = torch.stack([chosen_windows(image, self.side, index) for index, image in enumerate(images)])
        features = self.features(crops.flatten(0, 1)).unflatten(0, (count, -1))  # [prompts, 2, d]
        frechet = bootstrap(
            lambda chosen: frechet_distance(features[torch.from_numpy(chosen)].flatten(0, 1), self.real),
            count,
            RESAMPLES,
            normal=True,
        )
        return {
            "variant": asdict(variant),
            "metrics": {name: asdict(value) for name, value in {**summarize(measured), "frechet": frechet}.items()},
            "frechet_floor": self.floor,
            "seconds": seconds,
            "steps": engine.steps - steps,
            "codes_per_second": sum(panorama.stats.drawn for panorama in drawn) / seconds,
            "load": load_average(),
        }


def run(options: argparse.Namespace, report: Callable[[str], None]) -> Iterator[Result]:
    """Measure every variant; one JSON-ready object each."""
    folder = open_folder(options.model)
    imported("torchmetrics"), STLPIPS.load(), Features()  # say what is missing before an engine starts
    with Engine(folder.path, dtype=options.dtype) as engine:
        grid = engine.config.grid
        strides = options.strides or [grid.default_stride]
        for stride in strides:
            grid.check_stride(stride)
        quality = Quality(engine, options.prompts, report)
        shared = {
            "model": folder.path.name,
            "fingerprint": fingerprint_model(folder.path),
            "grid": grid.side,
            "dtype": options.dtype,
            "prompts": options.prompts,
            "seed": options.seed,
            "frechet_features": FEATURES,
        }
        for context in options.contexts:
            for width in options.widths:
                for stride in strides:
                    result = quality.measure(Variant(stride, width, context), options.prompts, options.seed)
                    report(f"{result['variant']}: {result['seconds']:.0f} s")
                    yield {
                        "benchmark": "quality",
                        "date": datetime.now(UTC).isoformat(timespec="seconds"),
                        "machine": describe(),
                        "workload": shared,
                        **result,
                    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder with vq/ (default: the embedded model)")
    parser.add_argument(
        "--strides", type=numbers, metavar="C,...", help="columns that a crop adds (default: the model's)"
    )
    parser.add_argument("--widths", type=numbers, default=[4], metavar="N,...", help="in crops, from 2 on (default: 4)")
    parser.add_argument(
        "--contexts", type=lambda text: text.split(","), default=["reuse"], metavar="C,...", help="reuse, recompute"
    )
    parser.add_argument("--prompts", type=int, default=100, metavar="N", help="pictures of each variant (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; each has the next (default: 0)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each result to this JSON Lines file")
    options = parser.parse_args(arguments)
    if not set(options.contexts) <= set(CONTEXTS):
        parser.error(f"--contexts are {','.join(options.contexts)}, expected {' or '.join(CONTEXTS)}")
    if min(options.widths) < 2 or options.prompts < 2:
        parser.error("--widths and --prompts must be at least 2: crops and pictures are compared with each other")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported
    results = []
    try:
        for result in run(options, lambda line: print(line, file=sys.stderr, flush=True)):
            results.append(result)
            if options.json is not None:
                append_result(options.json, result)
    except PanoserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(results))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
