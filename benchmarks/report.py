"""docs/benchmarks.md from the results of benchmarks: every table and chart of it, by one command.

    panoserve bench report

The page holds one block for each section below, between two comments; what is between them is made from the newest
lines of benchmarks/results/*.jsonl, and everything else is left as it is. A section without a result says how to get
one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from panoserve.benchmarks.charts import Chart, svg
from panoserve.benchmarks.results import Result, latest
from panoserve.cli_files import write_atomically
from panoserve.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Block:
    """What a section shows: Markdown, and charts by the names that it links them under (without `.svg`)."""

    text: str
    charts: dict[str, Chart] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: made of the results of one benchmark, if `command` was ever run."""

    benchmark: str
    render: Callable[[list[Result]], Block]  # an empty text if the results have nothing for it
    command: str


def sections() -> dict[str, Section]:
    """Every section by name. Imported late: the benchmarks' own modules import torch."""
    from panoserve.benchmarks import (
        batch,
        decode,
        endless,
        http_load,
        kv_move,
        quality_report,
        startup,
        throughput_report,
    )

    throughput = "python -m panoserve.benchmarks.throughput"

    def starts(results: list[Result]) -> Block:
        models = latest(results, "workload.model", "workload.grid", "workload.dtype", "workload.lanes")
        return Block(startup.table(models))

    def tables(table: Callable[[Result], str], results: list[Result]) -> Block:
        return Block(table(results[-1]))

    return {
        "throughput": Section("throughput", throughput_report.throughput, throughput),
        "concurrency": Section("throughput", throughput_report.concurrency, f"{throughput} --panoramas 1,2,4,8"),
        "width": Section("throughput", throughput_report.width, f"{throughput} --width 2,4,10,20,40"),
        "breakdown": Section("throughput", throughput_report.breakdown, f"{throughput} --breakdown"),
        "startup": Section("startup", starts, "python -m panoserve.benchmarks.startup"),
        "endless": Section("endless", partial(tables, endless.tables), "python -m panoserve.benchmarks.endless"),
        "kv-move": Section("kv_move", partial(tables, kv_move.table), "python -m panoserve.benchmarks.kv_move"),
        "decode": Section("decode", partial(tables, decode.table), "python -m panoserve.benchmarks.decode"),
        "quality": Section("quality", quality_report.quality, "python -m panoserve.benchmarks.quality"),
        "batch": Section("batch", partial(tables, batch.table), "python -m panoserve.benchmarks.batch"),
        "http": Section("http_load", partial(tables, http_load.table), "python -m panoserve.benchmarks.http_load"),
    }


def markers(name: str) -> tuple[str, str]:
    return f"<!-- results of {name}: made by `panoserve bench report` -->\n", f"<!-- end of {name} -->\n"


def render_page(page: str, results: Sequence[Result]) -> tuple[str, dict[str, Chart]]:
    """The page with its blocks made anew, and all charts. Raises InvalidRequestError if a block is missing."""
    charts: dict[str, Chart] = {}
    for name, section in sections().items():
        begin, end = markers(name)
        head, found, rest = page.partition(begin)
        _, ended, tail = rest.partition(end)
        if not found or not ended:
            raise InvalidRequestError(f"the page has no block {begin.strip()} ... {end.strip()}; add these two lines")
        own = [result for result in results if result["benchmark"] == section.benchmark]
        block = section.render(own) if own else Block("")
        text = block.text or f"*Not measured yet: `{section.command}`.*"
        charts |= block.charts
        page = f"{head}{begin}\n{text}\n\n{end}{tail}"
    return page, charts


def write_report(page: Path, results: Sequence[Result], draw_charts: bool = True) -> list[Path]:
    """Rewrite the page and the charts beside it; returns the files written."""
    text, charts = render_page(page.read_text(encoding="utf-8"), results)
    contents = {page: text}
    if draw_charts:
        contents |= {page.parent / f"{name}.svg": svg(chart) for name, chart in charts.items()}
    for path, content in contents.items():
        data = content.encode()
        write_atomically(path, lambda file, data=data: file.write(data))  # type: ignore[misc]
    return list(contents)


def structure(page: str) -> str:
    """A page without its numbers, dates and commits: what a test can expect to be current."""
    return re.sub(r"\d[\d.,:]*", "0", re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{10}\b\+?", "0", page))
