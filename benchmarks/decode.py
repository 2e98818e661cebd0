"""Milliseconds of a VQ decode with our convolution (kernels/conv3x3.py), beside the same decode with torch's.

    python -m panoserve.benchmarks.decode --tokenizers assets/pano-mini,VQ-16 --sizes 1,3

In turns, in float32 on the CPU; sizes are in crops, side by side: of a model folder its own crops, of VQ-16 and VQ-8
(random weights) crops of 256 pixels. Medians. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch

from panoserve.benchmarks.machine import StolenTime, describe, load_average
from panoserve.benchmarks.results import Result, append_result, markdown, measured_on, stolen_by_host
from panoserve.errors import InvalidRequestError
from panoserve.kernels.native import Level, level, lowered
from panoserve.vq.config import VQ_8, VQ_16
from panoserve.vq.io import load_vq
from panoserve.vq.model import VQModel

PUBLISHED = {"VQ-16": VQ_16, "VQ-8": VQ_8}
PUBLISHED_CROP = 256  # pixels


@dataclass(frozen=True, slots=True)
class Timing:
    """One line of the table: medians."""

    tokenizer: str
    pixels: str
    milliseconds: float
    torch_milliseconds: float
    ratio: float  # of torch's to ours, the median over the turns
    difference: float  # the largest between the two pictures, white being 1 and black -1


def tokenizer_of(name: str) -> tuple[VQModel, int]:
    """A tokenizer by its name or its model folder, and the side of a crop in codes. Raises InvalidRequestError."""
    from panoserve.serve.folder import ModelFolder

    if name in PUBLISHED:
        torch.manual_seed(0)
        model = VQModel(PUBLISHED[name]).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, PUBLISHED_CROP // model.config.downsample
    if not Path(name).is_dir():
        raise InvalidRequestError(f"{name} is no model folder; expected one, or one of {', '.join(PUBLISHED)}")
    folder = ModelFolder(Path(name))
    return load_vq(folder.path / "vq"), folder.config.grid_side


def measure(name: str, crops: int, repeats: int) -> Timing:
    """Time decodes of `crops` crops side by side."""
    model, side = tokenizer_of(name)
    generator = torch.Generator().manual_seed(crops)
    codes = torch.randint(model.config.codebook_size, (1, side, crops * side), generator=generator)
    pictures, seconds = [], []
    for turn in range(repeats + 1):
        times = []
        for at in (level(), Level.NONE):
            with lowered(at), torch.inference_mode():
                begun = perf_counter()
                picture = model.decode(codes)
                times.append(perf_counter() - begun)
            if not turn:
                pictures.append(picture)
        if turn:  # the first one sets things up
            seconds.append(times)
    ours, plain = (statistics.median(column) for column in zip(*seconds, strict=True))
    step = model.config.downsample * side
    return Timing(
        tokenizer=name if name in PUBLISHED else Path(name).name,
        pixels=f"{crops * step}x{step}",
        milliseconds=1e3 * ours,
        torch_milliseconds=1e3 * plain,
        ratio=statistics.median(slow / fast for fast, slow in seconds),
        difference=(pictures[0] - pictures[1]).abs().max().item(),
    )


def table(result: Result) -> str:
    """The result for people (Markdown)."""
    header = ["tokenizer", "pixels", "ms", "with torch's convolution, ms", "faster by", "largest difference"]
    rows = [
        [
            timing["tokenizer"],
            timing["pixels"],
            f"{timing['milliseconds']:.1f}",
            f"{timing['torch_milliseconds']:.1f}",
            f"{timing['ratio']:.2f}",
            f"{timing['difference']:.1e}",
        ]
        for timing in result["timings"]
    ]
    about = f"Workload: float32, {result['threads']} threads, medians of {result['workload']['repeat']}"
    head = f"{about}; load {result['load']}{stolen_by_host([result['stolen']])}"
    return f"{head}  \n{measured_on(result)}\n\n{markdown(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.decode", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tokenizers",
        default="assets/pano-mini",
        metavar="T,...",
        help=f"model folders, or {' and '.join(PUBLISHED)} with random weights",
    )
    parser.add_argument("--sizes", default="1,3", metavar="N,...", help="crops side by side")
    parser.add_argument("--repeat", type=int, default=9, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    stolen = StolenTime()
    timings = [
        measure(name, int(crops), options.repeat)
        for name in options.tokenizers.split(",")
        for crops in options.sizes.split(",")
    ]
    result: Result = {
        "benchmark": "decode",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "workload": {"sizes": options.sizes, "repeat": options.repeat},
        "threads": torch.get_num_threads(),
        "load": load_average(),
        "stolen": stolen.share(),
        "timings": [asdict(timing) for timing in timings],
    }
    if options.json is not None:
        append_result(options.json, result)
    print(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
