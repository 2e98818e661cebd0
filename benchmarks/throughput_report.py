"""The throughput benchmark's results as tables and charts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from panoserve.benchmarks.breakdown import PARTS
from panoserve.benchmarks.charts import BarChart, Chart, Line, LineChart
from panoserve.benchmarks.report import Block
from panoserve.benchmarks.results import Result, latest, markdown, measured_on, stolen_by_host

Case = dict[str, Any]
WORKLOAD = ("model_shape", "condition", "caption_rows", "grid", "strides", "crops", "widths", "panoramas", "contexts",
            "orders", "dtype", "kv_cache_dtype")  # fmt: skip


def newest(results: list[Result]) -> list[Result]:
    """The newest result of every workload on every kind of processor."""
    results = [{**result, "workload": {"kv_cache_dtype": "auto", **result["workload"]}} for result in results]
    return latest(results, "machine.isa", *(f"workload.{name}" for name in WORKLOAD))


def model_of(result: Result) -> str:
    workload = result["workload"]
    caption = f" of {workload['caption_rows']} rows" if workload["condition"] == "caption" else ""
    cache = "" if workload["kv_cache_dtype"] == "auto" else f" with a cache in {workload['kv_cache_dtype']}"
    return (
        f"GPT-{workload['model_shape'].removeprefix('GPT-')} {workload['dtype']}{cache}, "
        f"{workload['condition']}{caption}, "
        f"grid {workload['grid']}, on {result['machine']['isa']}"
    )


def how(case: Case) -> str:
    return f"{case['order']}, {case['context']}"


def heading(result: Result) -> str:
    """What was drawn, and on what."""
    workload, ceilings, memory = result["workload"], result["ceilings"], result["resident_mib"]
    by_rows = ", ".join(f"{value / 1e9:.0f} at {rows} rows" for rows, value in ceilings["flops_by_rows"].items())
    return "\n".join(
        [
            f"Workload: {model_of(result)}, guidance {workload['guidance']:g}, top-k {workload['top_k']}; "
            f"medians of {workload['repeat']}  ",
            f"{measured_on(result)}  ",
            f"Ceilings: read {ceilings['bandwidth'] / 1e9:.1f} GB/s; matrix products, GFLOP/s: {by_rows}  ",
            f"Load: {loads(result)}" + (f"; memory: {memory:,.0f} MiB" if memory else ""),
        ]
    )


def loads(result: Result) -> str:
    values = [run["load"] for case in result["cases"] for run in case["runs"]]
    stolen = [run["stolen"] for case in result["cases"] for run in case["runs"] if "stolen" in run]
    return f"{min(values):.1f} to {max(values):.1f}{stolen_by_host(stolen)}"


def rate(case: Case) -> str:
    """Codes per second: the median, and all runs if there are several."""
    runs = [f"{run['drawn'] / run['seconds']:.1f}" for run in case["runs"]]
    return f"{case['codes_per_second']:.1f}" + (f" ({', '.join(runs)})" if len(runs) > 1 else "")


def cases_table(result: Result) -> str:
    header = ["order, context", "panoramas", "columns", "stride", "lanes", "steps", "ms/step", "codes/s", "tokens/code",
              "sequential codes/s", "speedup", "lock-step codes/s", "speedup", "ceiling reached"]  # fmt: skip
    rows = [
        [
            how(case),
            f"{case['panoramas']}",
            f"{case['columns']:,}",
            f"{case['stride']}",
            f"{case['lanes']}",
            f"{case['steps']:,}",
            f"{case['ms_per_step']:.1f}",
            rate(case),
            f"{case['tokens_per_code']:.3f}",
            f"{case['baseline_codes_per_second']:.1f}",
            f"{case['speedup']:.1f}",
            f"{case['batched_codes_per_second']:.1f}",
            f"{case['speedup_over_batched']:.1f}",
            f"{case['ceiling_fraction']:.0%}",
        ]
        for case in result["cases"]
    ]
    return markdown(header, rows)


def ratios_table(result: Result) -> str:
    """How the ways of drawing the same compare, within this run; empty if there is one way only."""
    same: dict[tuple[int, int, int], dict[str, float]] = {}
    for case in result["cases"]:
        place = (case["panoramas"], case["columns"], case["stride"])
        same.setdefault(place, {})[how(case)] = case["codes_per_second"]
    pairs = [
        ("`reuse` over `recompute`", "wavefront, reuse", "wavefront, recompute"),
        ("wavefront over crop after crop", "wavefront, recompute", "crops, recompute"),
        ("wavefront with `reuse` over crop after crop", "wavefront, reuse", "crops, recompute"),
    ]
    pairs = [pair for pair in pairs if all(set(pair[1:]) <= rates.keys() for rates in same.values())]
    if not pairs:
        return ""
    rows = [
        [str(panoramas), str(columns), str(stride), *(f"{rates[a] / rates[b]:.2f}" for _, a, b in pairs)]
        for (panoramas, columns, stride), rates in same.items()
    ]
    return markdown(["panoramas", "columns", "stride", *(name for name, _, _ in pairs)], rows, left=0)


def table(result: Result) -> str:
    """The result for people (Markdown)."""
    parts = [heading(result), cases_table(result), ratios_table(result), breakdown_table([result])]
    return "\n\n".join(part for part in parts if part)


def throughput(results: list[Result]) -> Block:
    """The newest result of every workload, as tables."""
    parts = []
    for result in newest(results):
        parts += [heading(result), cases_table(result), ratios_table(result)]
    return Block("\n\n".join(part for part in parts if part))


def series(result: Result, x: str) -> Iterator[tuple[str, list[Case]]]:
    """Groups of at least three cases that differ in `x` alone, in its order, each with a name."""
    rest = [name for name in ("panoramas", "columns", "stride") if name != x]
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in result["cases"]:
        groups.setdefault((how(case), *(case[name] for name in rest)), []).append(case)
    for (way, *values), cases in groups.items():
        if len({case[x] for case in cases}) >= 3:
            places = ", ".join(f"{name} {value}" for name, value in zip(rest, values, strict=True))
            yield f"{model_of(result)}; {way}; {places}", sorted(cases, key=lambda case: int(case[x]))


def concurrency(results: list[Result]) -> Block:
    """Codes per second over the number of panoramas drawn at once."""
    lines, rows = [], []
    for result in newest(results):
        for name, cases in series(result, "panoramas"):
            counts = tuple(float(case["panoramas"]) for case in cases)
            lines.append(Line(name, counts, tuple(case["codes_per_second"] for case in cases)))
            lock_step = tuple(case["batched_codes_per_second"] for case in cases)
            lines.append(Line(f"lock-step baseline; {name.split('; ', 1)[0]}", counts, lock_step))
            rows += [
                [name, f"{case['panoramas']}", f"{case['codes_per_second']:.1f}", f"{case['speedup']:.1f}",
                 f"{case['speedup_over_batched']:.1f}", f"{case['ceiling_fraction']:.0%}"]
                for case in cases
            ]  # fmt: skip
    if not rows:
        return Block("")
    header = ["workload", "panoramas", "codes/s", "over sequential", "over lock-step", "ceiling reached"]
    chart = LineChart("Panoramas drawn at once", "panoramas", "codes/s", tuple(lines))
    return _with_chart(markdown(header, rows), "benchmarks-concurrency", chart)


def width(results: list[Result]) -> Block:
    """Seconds of a panorama over its width, and what a code costs."""
    lines, rows = [], []
    for result in newest(results):
        grid = result["workload"]["grid"]
        for name, cases in series(result, "columns"):
            widths = tuple(case["columns"] / grid for case in cases)
            cost = [1e3 / case["codes_per_second"] for case in cases]
            # The goal is that width 40x costs no more a code than 4x: the first of at least 4x is the measure.
            reference = next((c for w, c in zip(widths, cost, strict=True) if w >= 4), cost[-1])
            lines.append(Line(name, widths, tuple(cost)))
            rows += [
                [name, f"{w:g}", f"{case['drawn']:,}", f"{case['drawn'] * c / 1e3:.1f}", f"{c:.2f}",
                 f"{c / reference:.2f}"]
                for case, w, c in zip(cases, widths, cost, strict=True)
            ]  # fmt: skip
    if not rows:
        return Block("")
    header = ["workload", "width in crops", "codes", "seconds", "ms/code", "over the first from 4 on"]
    chart = LineChart("What a code costs, over the width", "width in crops", "ms/code", tuple(lines))
    return _with_chart(markdown(header, rows), "benchmarks-width", chart)


def breakdown_table(results: list[Result]) -> str:
    rows = [
        [
            f"{model_of(result)}; {how(case)}; {case['panoramas']} x {case['columns']:,} columns",
            *(f"{case['breakdown_ms'][part]:.2f}" for part in PARTS),
            f"{sum(case['breakdown_ms'].values()):.1f}",
            f"{case['ms_per_step']:.1f}",
            f"{case['weights_floor_ms']:.1f}",
            f"{case['kv_floor_ms']:.1f}",
        ]
        for result, case in _broken_down(results)
    ]
    header = ["workload", *PARTS, "sum", "without clocks", "least for weights", "least for KV"]
    return markdown(header, rows) if rows else ""


def _broken_down(results: list[Result]) -> Iterator[tuple[Result, Case]]:
    for result in results:
        for case in result["cases"]:
            if case["breakdown_ms"] is not None:
                yield result, case


def breakdown(results: list[Result]) -> Block:
    """Milliseconds of a step, by part."""
    found = list(_broken_down(newest(results)))
    if not found:
        return Block("")
    rows = tuple(bar_of(result, case) for result, case in found)
    parts = {part: tuple(case["breakdown_ms"][part] for _, case in found) for part in PARTS}
    chart = BarChart("What a step spends", "ms", rows, parts)
    return _with_chart(breakdown_table(newest(results)), "benchmarks-breakdown", chart)


def bar_of(result: Result, case: Case) -> str:
    """A shorter name than in the table, which is in the same order: the bars need the room."""
    workload = result["workload"]
    cache = "" if workload["kv_cache_dtype"] == "auto" else f", {workload['kv_cache_dtype']} cache"
    return f"{workload['model_shape']}, {result['machine']['isa']}{cache}: {case['panoramas']} x {case['columns']}"


def _with_chart(text: str, name: str, chart: Chart) -> Block:
    return Block(f"{text}\n\n![{chart.title}]({name}.svg)", {name: chart})
