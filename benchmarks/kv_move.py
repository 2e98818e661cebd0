"""Microseconds of the paged KV move, beside a plain copy of as many bytes.

    python -m panoserve.benchmarks.kv_move --model-shape B --lanes 4,16

Caches of a published shape as vLLM lays them out here, guided (two streams of heads). Every lane moves the overlap of
one row, grid - stride - 1 slots, from a window of its own to another; all lanes in one call, as the wavefront does it.
Medians. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from panoserve.benchmarks.machine import describe, load_average
from panoserve.benchmarks.results import Result, append_result, markdown, measured_on
from panoserve.configs.model import ModelConfig, size_presets
from panoserve.kernels.kv_layout import kv_layout
from panoserve.kernels.kv_shift import KVMove, move_kv
from panoserve.kernels.rope import RopeSpec
from panoserve.models.hf_config import padded_head_dim

CACHE_BYTES = 2**30  # of the whole cache; far more than any last-level cache
BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True)
class Timing:
    """One line of the table."""

    layout: str
    lanes: int
    slots: int
    milliseconds: float
    us_per_slot: float
    us_per_layer: float
    gb_per_second: float  # read and written
    copy_gb_per_second: float  # of a contiguous copy, read and written


def overlap_move(num_blocks: int, lanes: int, run: int, stride: int) -> KVMove:
    """`lanes` runs of consecutive slots spread over the first half of the cache, moved to the second half."""
    half = num_blocks * BLOCK_SIZE // 2
    starts = torch.arange(lanes) * (half // lanes)
    offsets = torch.arange(run)
    source = (starts[:, None] + 1 + stride + offsets).flatten()  # slot 0 is the condition row
    destination = (half + starts[:, None] + 1 + offsets).flatten()
    zeros = torch.zeros(len(source), dtype=torch.int32)
    return KVMove(source, destination, zeros, zeros - stride)


def measure(config: ModelConfig, dtype: torch.dtype, lanes: int, stride: int, repeats: int = 15) -> Timing:
    """Time moves of `lanes` rows."""
    heads, head_dim = 2 * config.num_attention_heads, padded_head_dim(config.head_dim)
    block_bytes = config.num_hidden_layers * heads * BLOCK_SIZE * 2 * head_dim * dtype.itemsize
    num_blocks = max(CACHE_BYTES // block_bytes, 4 * lanes)
    cache = torch.ones(config.num_hidden_layers, num_blocks, heads, BLOCK_SIZE, 2 * head_dim, dtype=dtype)
    layers = list(cache)
    layout, rope = kv_layout(layers[0]), RopeSpec(config.head_dim, config.rope_theta)
    move = overlap_move(num_blocks, lanes, max(config.grid_side - stride - 1, 1), stride)
    seconds = _median_seconds(lambda: move_kv(layers, layout, move, rope), repeats)
    moved = 2 * len(move) * config.num_hidden_layers * heads * 2 * head_dim * dtype.itemsize
    return Timing(
        layout=layout.name,
        lanes=lanes,
        slots=len(move),
        milliseconds=1e3 * seconds,
        us_per_slot=1e6 * seconds / len(move),
        us_per_layer=1e6 * seconds / len(layers),
        gb_per_second=moved / seconds / 1e9,
        copy_gb_per_second=_copy_bandwidth(cache, repeats) / 1e9,
    )


def _copy_bandwidth(cache: Tensor, repeats: int) -> float:
    flat = cache.flatten()
    half = len(flat) // 2
    seconds = _median_seconds(lambda: flat[:half].copy_(flat[half : 2 * half]), max(repeats // 3, 1))
    return 2 * half * flat.element_size() / seconds


def _median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return statistics.median(times)


def table(result: Result) -> str:
    """The result for people (Markdown)."""
    workload = result["workload"]
    header = ["layout", "lanes", "slots", "ms", "us/slot", "us/layer", "GB/s", "plain copy GB/s"]
    rows = [
        [
            timing["layout"],
            f"{timing['lanes']}",
            f"{timing['slots']}",
            f"{timing['milliseconds']:.2f}",
            f"{timing['us_per_slot']:.0f}",
            f"{timing['us_per_layer']:.0f}",
            f"{timing['gb_per_second']:.2f}",
            f"{timing['copy_gb_per_second']:.1f}",
        ]
        for timing in result["timings"]
    ]
    shape = f"GPT-{workload['model_shape']} {workload['dtype']}, grid {workload['grid']}, stride {workload['stride']}"
    return f"Workload: {shape}; load {result['load']}  \n{measured_on(result)}\n\n{markdown(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.kv_move", description=__doc__.split("\n")[0])
    parser.add_argument("--model-shape", default="B", help=f"one of {', '.join(size_presets())}")
    parser.add_argument("--grid", type=int, default=32)
    parser.add_argument("--stride", type=int, default=24)
    parser.add_argument("--lanes", default="4,16", help="lanes that move a row at once; several, with commas")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    config = ModelConfig.preset(
        options.model_shape, grid_side=options.grid, downsample=16, condition="class", num_classes=1000
    )
    dtype = getattr(torch, options.dtype)
    timings = [measure(config, dtype, int(lanes), options.stride) for lanes in options.lanes.split(",")]
    workload = {name: value for name, value in vars(options).items() if name != "json"}
    result = {
        "benchmark": "kv_move",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "workload": workload,
        "load": load_average(),
        "timings": [asdict(timing) for timing in timings],
    }
    if options.json is not None:
        append_result(options.json, result)
    print(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
