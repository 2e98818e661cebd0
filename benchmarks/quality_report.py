"""The quality benchmark's results as tables and charts."""

from __future__ import annotations

from typing import Any

from panoserve.benchmarks.charts import Chart, Line, LineChart
from panoserve.benchmarks.report import Block
from panoserve.benchmarks.results import Result, latest, markdown, measured_on

METRICS = {  # figure -> its heading; which way is better
    "st_lpips": "ST-LPIPS between crops (lower: more alike)",
    "ssim": "SSIM of neighbours (higher)",
    "border_variation": "variation at borders (lower)",
    "seam_ratio": "seam ratio (1)",
    "code_seam_ratio": "seam ratio among codes (1)",
    "frechet": "Frechet distance (lower)",
}
SHARED = ("fingerprint", "dtype", "prompts", "seed")


def runs(results: list[Result]) -> list[list[Result]]:
    """The newest result of every variant, grouped by model, number format, prompts and seed."""
    key = [f"workload.{name}" for name in SHARED]
    groups: dict[str, list[Result]] = {}
    for result in latest(results, *key, "variant"):
        groups.setdefault(str([result["workload"][name] for name in SHARED]), []).append(result)
    return list(groups.values())


def name_of(result: Result) -> str:
    variant, grid = result["variant"], result["workload"]["grid"]
    share = f"{variant['stride']} of {grid}"
    if variant["stride"] == grid:
        return f"independent crops, {variant['width']} wide"
    return f"stride {share}, {variant['width']} wide, {variant['context']}"


def shown(estimate: dict[str, float]) -> str:
    digits = next((digits for digits, least in enumerate((10, 1, 0.1), start=1) if abs(estimate["value"]) >= least), 4)
    value, low, high = (f"{estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def order(result: Result) -> tuple[Any, ...]:
    variant = result["variant"]
    return variant["width"], variant["context"], variant["stride"]


def table(results: list[Result]) -> str:
    """Results of one model for people (Markdown)."""
    workload, floor = results[-1]["workload"], results[-1]["frechet_floor"]
    rows = [
        [
            name_of(result),
            *(shown(result["metrics"][metric]) for metric in METRICS),
            f"{result['codes_per_second']:.0f}",
            f"{result['load']:.1f}",
        ]
        for result in sorted(results, key=order)
    ]
    features = f"Frechet distance in {workload['frechet_features']}, {floor:.1f} between two sets of real crops"
    head = (
        f"Model: {workload['model']} ({workload['fingerprint'][:12]}), {workload['dtype']}, "
        f"{workload['prompts']} prompts each; {features}  \n{measured_on(results[-1])}"
    )
    return f"{head}\n\n{markdown(['variant', *METRICS.values(), 'codes/s', 'load'], rows)}"


def quality(results: list[Result]) -> Block:
    """Tables of all models, and for the newest the strides' and the sizes' charts."""
    groups = runs(results)
    newest = groups[-1]
    charts: dict[str, Chart] = {}
    strides = longest(newest, "stride", ("width", "context"))
    widths = longest(newest, "width", ("stride", "context"))
    if len(strides) >= 3:
        grid = newest[0]["workload"]["grid"]
        places = tuple(result["variant"]["stride"] / grid for result in strides)
        charts["benchmarks-strides"] = chart(
            "Stride", "stride, as a share of a crop (1: independent crops)", places, strides
        )
    if len(widths) >= 3:
        places = tuple(float(result["variant"]["width"]) for result in widths)
        charts["benchmarks-sizes"] = chart("Width", "width in crops", places, widths)
    images = [f"![{drawn.title}]({name}.svg)" for name, drawn in charts.items()]
    return Block("\n\n".join([*map(table, groups), *images]), charts)


def longest(results: list[Result], along: str, fixed: tuple[str, ...]) -> list[Result]:
    """Of the results that agree in `fixed`, those of the largest such group, in the order of `along`."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result["variant"][name] for name in fixed), []).append(result)
    largest = max(groups.values(), key=lambda group: len(group))
    return sorted(largest, key=lambda result: int(result["variant"][along]))


def chart(title: str, label: str, places: tuple[float, ...], results: list[Result]) -> LineChart:
    """Every figure relative to its first value, so that all share one axis."""
    lines = []
    for metric, heading in METRICS.items():
        estimates = [result["metrics"][metric] for result in results]
        first = estimates[0]["value"]
        values = tuple(estimate["value"] / first for estimate in estimates)
        intervals = tuple((estimate["low"] / first, estimate["high"] / first) for estimate in estimates)
        lines.append(Line(heading, places, values, intervals))
    return LineChart(f"{title}: every figure over its first", label, "relative", tuple(lines))
