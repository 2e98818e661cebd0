"""Charts as data, and as SVG by matplotlib."""

from __future__ import annotations

import io
from dataclasses import dataclass

from panoserve.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True)
class Line:
    """Points of a line, with the intervals of their values where there are any."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class LineChart:
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class BarChart:
    """One horizontal bar a row, divided into parts."""

    title: str
    x_label: str
    rows: tuple[str, ...]
    parts: dict[str, tuple[float, ...]]  # of every row


Chart = LineChart | BarChart


def svg(chart: Chart) -> str:
    """The chart as an SVG file; equal charts give equal files. Raises EnvironmentProblem without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentProblem(
            "charts are drawn by matplotlib, which is not installed; install it (pip install matplotlib), or leave the "
            "charts out with --no-charts"
        ) from None

    style = {
        "svg.hashsalt": "panoserve",
        "svg.fonttype": "none",
        "font.size": 9.0,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.set_title(chart.title)
        axes.set_xlabel(chart.x_label)
        if isinstance(chart, LineChart):
            for line in chart.lines:
                error = None
                if line.intervals:
                    pairs = list(zip(line.y, line.intervals, strict=True))
                    error = [[y - low for y, (low, _) in pairs], [high - y for y, (_, high) in pairs]]
                axes.errorbar(line.x, line.y, yerr=error, label=line.name, marker="o", capsize=3)
            axes.set_ylabel(chart.y_label)
            axes.set_xticks(sorted({x for line in chart.lines for x in line.x}))
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        else:
            places = range(len(chart.rows))  # by names, equal ones would lie over each other
            left = [0.0] * len(places)
            for name, values in chart.parts.items():
                axes.barh(places, values, left=left, label=name)
                left = [start + value for start, value in zip(left, values, strict=True)]
            axes.set_yticks(places, chart.rows)
            axes.invert_yaxis()
        figure.legend(loc="outside lower center", fontsize=7)  # a place within is searched for, which can take long
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
