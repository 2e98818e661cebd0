"""`panoserve plan`: what a panorama would take, before it is drawn: its crops as a picture, steps, memory and time."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoserve.benchmarks.forecast import MACHINES, Machine, forecast
from panoserve.cli_model import open_folder
from panoserve.configs.model import ModelConfig, size_presets
from panoserve.errors import InvalidRequestError
from panoserve.redirect.layout import plan_of
from panoserve.redirect.picture import plan_text
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.settings import DTYPES

if TYPE_CHECKING:
    from panoserve.benchmarks.forecast import Forecast
    from panoserve.redirect.plan import Plan

ABOUT = "say what a panorama would take, without drawing it"
DETAIL = (
    "Shows its crops, and counts steps, model inputs, KV cache, and the least time that a machine's memory bandwidth "
    "and peak allow."
)
PICTURE_WIDTH = 96  # characters
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes besides --size."""
    parser.add_argument(
        "--stride", type=int, metavar="C", help="columns a crop adds (default: three quarters of a crop)"
    )
    parser.add_argument("--row-stride", type=int, metavar="R", help="rows a crop adds (default: as --stride)")
    parser.add_argument("--loop", action="store_true", help="the right edge meets the left one")
    parser.add_argument("--context", choices=CONTEXTS, default="reuse", help="as in generate; default reuse")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="default bfloat16")
    parser.add_argument("--panoramas", type=int, default=1, metavar="N", help="how many are drawn at once (default: 1)")
    parser.add_argument(
        "--prompt-rows", type=int, metavar="N", help="condition rows of the prompt (default: the most the model takes)"
    )
    parser.add_argument(
        "--machine",
        choices=("this", *MACHINES),
        default="this",
        help="bandwidth and peak: measured now (this, the default), or published figures of a GPU",
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder (default: assets/pano-mini of the checkout)"
    )
    parser.add_argument(
        "--shape", choices=list(size_presets()), help="a published text-conditional shape instead of a folder"
    )
    parser.add_argument("--grid", type=int, default=32, metavar="G", help="token grid side of --shape (default: 32)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def plan(arguments: argparse.Namespace) -> int:
    from panoserve.serve.request import PanoramaRequest

    config = _config(arguments)
    width, height = arguments.size or (None, None)
    subject: dict[str, Any] = {"label": 0} if config.condition == "class" else {"prompt": "any"}
    request = PanoramaRequest(
        **subject,
        width=width,
        height=height,
        stride=arguments.stride,
        row_stride=arguments.row_stride,
        loop=arguments.loop,
        context=arguments.context,
    ).resolve(config)
    rows = _prompt_rows(arguments, config)
    if arguments.panoramas < 1:
        raise InvalidRequestError(f"--panoramas is {arguments.panoramas}, but at least one is drawn")
    machine = _machine(arguments, config)
    drawn = plan_of(request.engine_args(config), config.grid)
    answer = forecast(
        drawn, config, machine, prefix_rows=rows, itemsize=DTYPES[arguments.dtype], panoramas=arguments.panoramas
    )
    if arguments.json:
        size = {"width": request.width, "height": request.height, "machine": asdict(machine)}
        print(json.dumps({**size, **asdict(answer)}))
    else:
        print(plan_text(drawn, PICTURE_WIDTH))
        print(_table(drawn, answer, machine, arguments))
    return 0


def _config(arguments: argparse.Namespace) -> ModelConfig:
    """The model's shape: of a folder, or a published one."""
    if arguments.shape is None:
        return open_folder(arguments.model).config
    if arguments.model is not None:
        raise InvalidRequestError("got --model and --shape; give either")
    return ModelConfig.preset(
        arguments.shape,
        grid_side=arguments.grid,
        downsample=16,
        condition="caption",
        caption_dim=2048,
        caption_length=120,
    )


def _prompt_rows(arguments: argparse.Namespace, config: ModelConfig) -> int:
    rows: int = config.max_prefix if arguments.prompt_rows is None else arguments.prompt_rows
    if not 1 <= rows <= config.max_prefix:
        raise InvalidRequestError(f"--prompt-rows is {rows}, but this model takes 1 to {config.max_prefix}")
    return rows


def _machine(arguments: argparse.Namespace, config: ModelConfig) -> Machine:
    """A published machine, or this one, measured now."""
    if arguments.machine != "this":
        return MACHINES[arguments.machine]
    import torch

    from panoserve.benchmarks.ceilings import Ceilings

    ceilings = Ceilings.measure(config, getattr(torch, arguments.dtype), [])
    return Machine(ceilings.bandwidth, ceilings.peak)


def _table(plan: Plan, answer: Forecast, machine: Machine, arguments: argparse.Namespace) -> str:
    per_code = answer.forward_tokens / answer.drawn
    many = "" if arguments.panoramas == 1 else f" of {arguments.panoramas} panoramas"
    rows = [
        ("canvas", f"{plan.canvas.columns} x {plan.canvas.rows} codes, {len(plan.lanes)} crops"),
        ("steps", f"{answer.steps:,}"),
        ("codes drawn", f"{answer.drawn:,}{many}"),
        ("model inputs", f"{answer.forward_tokens:,}, {per_code:.2f} a code ({plan.context})"),
        ("KV cache", f"{answer.kv_bytes / GIB:.3f} GiB for {answer.most_lanes} crops at once; at least "
                     f"{answer.least_kv_bytes / GIB:.3f} GiB for {answer.least_lanes}"),
        ("machine", f"{arguments.machine}: {machine.bandwidth / 1e9:,.0f} GB/s, {machine.peak / 1e12:,.2f} TFLOP/s"),
        ("time", f"at least {answer.seconds:.2f} s, {answer.drawn / answer.seconds:,.0f} codes/s"),
    ]  # fmt: skip
    return "\n".join(f"{name:<13} {value}" for name, value in rows)
