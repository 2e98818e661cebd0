"""What the throughput benchmark draws: its command line as a value, and the requests that follow from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from panoserve.configs.model import ModelConfig, size_presets
from panoserve.redirect.plan import CONTEXTS, Context
from panoserve.serve.request import PanoramaRequest
from panoserve.serve.settings import CACHE_DTYPES

Order = Literal["wavefront", "crops"]  # all crops together, one row apart; or one crop after another
ORDERS: tuple[Order, ...] = ("wavefront", "crops")
CAPTION_DIM, CAPTION_LENGTH = 2048, 120  # of the published text-conditional models (facts.md 1.4)


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the table: so many panoramas of one shape, drawn in one way."""

    panoramas: int
    columns: int
    stride: int
    context: Context
    order: Order


@dataclass(frozen=True, slots=True)
class Workload:
    """What is drawn, as on the command line."""

    model_shape: str = "B"
    condition: Literal["class", "caption"] = "class"
    caption_rows: int = 32
    grid: int = 32
    strides: tuple[int, ...] = (24,)
    crops: tuple[int, ...] = (5,)
    widths: tuple[int, ...] = ()  # in crops laid side by side; in place of `crops`, if there are any
    panoramas: tuple[int, ...] = (1, 4)
    contexts: tuple[Context, ...] = ("reuse", "recompute")
    orders: tuple[Order, ...] = ("wavefront",)
    dtype: str = "bfloat16"
    kv_cache_dtype: str = "auto"
    guidance: float = 4.0
    top_k: int = 2000
    repeat: int = 3
    breakdown: bool = False

    @property
    def config(self) -> ModelConfig:
        """A published shape of the published kinds: 1000 classes, or captions of T5 features."""
        kind: dict[str, Any] = {"condition": "class", "num_classes": 1000}
        if self.condition == "caption":
            kind = {"condition": "caption", "caption_dim": CAPTION_DIM, "caption_length": CAPTION_LENGTH}
        return ModelConfig.preset(self.model_shape, grid_side=self.grid, downsample=16, **kind)

    @property
    def prefix_rows(self) -> int:
        return 1 if self.condition == "class" else self.caption_rows

    def columns(self, stride: int) -> tuple[int, ...]:
        """Widths of the panoramas in codes."""
        if self.widths:
            return tuple(width * self.grid for width in self.widths)
        return tuple(self.grid + (crops - 1) * stride for crops in self.crops)

    def tasks(self) -> Iterator[Task]:
        """Every line of the table. Crop after crop there is nothing to copy from, hence one context only."""
        for panoramas in self.panoramas:
            for stride in self.strides:
                for columns in self.columns(stride):
                    for order in self.orders:
                        for context in self.contexts if order == "wavefront" else ("recompute",):
                            yield Task(panoramas, columns, stride, context, order)  # type: ignore[arg-type]

    def lanes(self, task: Task) -> int:
        """Crops of all panoramas of a task."""
        added = -(-(task.columns - self.grid) // task.stride)
        return task.panoramas * (1 + added)

    def requests(self, task: Task) -> list[PanoramaRequest]:
        grid, config = self.config.grid, self.config
        return [
            PanoramaRequest(
                label=index if config.condition == "class" else None,
                features=None if config.condition == "class" else caption(config, self.caption_rows, index),
                width=task.columns * grid.downsample,
                height=grid.crop_pixels,
                stride=task.stride,
                guidance=self.guidance,
                top_k=self.top_k,
                seed=index,
                context=task.context,
            )
            for index in range(task.panoramas)
        ]


@cache
def caption(config: ModelConfig, rows: int, seed: int) -> Tensor:
    """Random features of a caption [rows, caption_dim]; only their number matters here."""
    return torch.randn(rows, config.caption_dim, generator=torch.Generator().manual_seed(seed))


def parse(arguments: Sequence[str], about: str) -> tuple[Workload, Path | None]:
    """The command line; its defaults are Workload's."""
    default = Workload()
    parser = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.throughput", description=about)
    shapes = ", ".join(size_presets())
    parser.add_argument("--model-shape", default=default.model_shape, help=f"one of {shapes}")
    parser.add_argument(
        "--condition", default=default.condition, choices=("class", "caption"), help="what conditions the model"
    )
    parser.add_argument("--caption-rows", type=int, default=default.caption_rows, help="text tokens of a caption")
    parser.add_argument("--grid", type=int, default=default.grid, help="side of a crop in codes")
    parser.add_argument("--stride", default="24", help="columns that each further crop adds; several, with commas")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--crops", default="5", help="crops of a panorama; several, with commas")
    length.add_argument("--width", help="in place of --crops: widths as multiples of a crop's; several, with commas")
    parser.add_argument("--panoramas", default="1,4", help="how many are drawn at once; several, with commas")
    parser.add_argument("--context", default=",".join(default.contexts), help="reuse, recompute, or both with a comma")
    parser.add_argument(
        "--order", default=",".join(default.orders), help="wavefront, crops (one after another), or both with a comma"
    )
    parser.add_argument("--dtype", default=default.dtype, choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--kv-cache-dtype", default=default.kv_cache_dtype, choices=CACHE_DTYPES)
    parser.add_argument("--guidance", type=float, default=default.guidance)
    parser.add_argument("--top-k", type=int, default=default.top_k)
    parser.add_argument("--repeat", type=int, default=default.repeat)
    parser.add_argument("--breakdown", action="store_true", help="one run more of each case: what a step spends")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    options = parser.parse_args(arguments)

    def numbers(name: str) -> tuple[int, ...]:
        text = getattr(options, name)
        try:
            values = tuple(int(value) for value in (text or "").split(",") if text)
        except ValueError:
            parser.error(f"--{name} is {text!r}, expected numbers with commas, like 1,4")
        if min(values, default=1) < 1:
            parser.error(f"--{name} is {text}, but must be at least 1")
        return values

    def names(name: str, known: Sequence[str]) -> tuple[Any, ...]:
        values = tuple(getattr(options, name).split(","))
        if not set(values) <= set(known):
            parser.error(f"--{name} is {getattr(options, name)!r}, expected {' or '.join(known)}, or both with a comma")
        return values

    strides = numbers("stride")
    if max(strides) > options.grid:
        parser.error(f"--stride is {options.stride}, expected 1 to {options.grid} (the grid side)")
    if min(options.repeat, options.caption_rows) < 1 or options.caption_rows > CAPTION_LENGTH:
        parser.error(f"--repeat must be at least 1, --caption-rows 1 to {CAPTION_LENGTH}")
    if options.model_shape.removeprefix("GPT-") not in {name.removeprefix("GPT-") for name in size_presets()}:
        parser.error(f"--model-shape is {options.model_shape!r}, expected one of {shapes}")
    workload = Workload(
        model_shape=options.model_shape,
        condition=options.condition,
        caption_rows=options.caption_rows,
        grid=options.grid,
        strides=strides,
        crops=numbers("crops"),
        widths=numbers("width"),
        panoramas=numbers("panoramas"),
        contexts=names("context", CONTEXTS),
        orders=names("order", ORDERS),
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        guidance=options.guidance,
        top_k=options.top_k,
        repeat=options.repeat,
        breakdown=options.breakdown,
    )
    return workload, options.json
