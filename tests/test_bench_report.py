"""docs/benchmarks.md is what the results make it, in structure; tables, charts and reader with results made up here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from panoserve import cli
from panoserve.benchmarks import startup, throughput_report
from panoserve.benchmarks.charts import BarChart, Line, LineChart, svg
from panoserve.benchmarks.report import markers, render_page, sections, structure
from panoserve.benchmarks.results import append_result, latest, read_results
from panoserve.benchmarks.throughput_report import PARTS
from panoserve.cli_bench import PAGE, RESULTS
from panoserve.errors import InvalidRequestError

STORED = read_results(RESULTS)


def made_up(**workload: Any) -> dict[str, Any]:
    """A throughput result of three numbers of panoramas, three widths and three ways, with breakdowns."""
    [stored, *_] = [result for result in STORED if result["benchmark"] == "throughput"]
    result = copy.deepcopy(stored)
    result["workload"] |= workload
    template = result["cases"][0]
    result["cases"] = [
        template
        | {"panoramas": count, "columns": columns, "order": order, "context": context, "drawn": count * 32 * columns}
        | {"codes_per_second": speed * count, "breakdown_ms": {part: float(i) for i, part in enumerate(PARTS)}}
        for count in (1, 2, 4)
        for columns in (64, 128, 320)
        for order, context, speed in (("wavefront", "reuse", 90.0), ("wavefront", "recompute", 60.0),
                                      ("crops", "recompute", 20.0))
    ]  # fmt: skip
    return result


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rendered, charts = render_page(page, STORED)
    assert structure(rendered) == structure(page), "run `panoserve bench report`"
    missing = [name for name in charts if not (PAGE.parent / f"{name}.svg").is_file()]
    assert missing == [], "run `panoserve bench report`"


def test_structure_forgets_numbers_and_nothing_else() -> None:
    one = "commit 476a54475c+; 2026-11-22T11:39:27+00:00 | 4,096 | 90.4 (98.1, 90.4) | 42%"
    other = "commit 09adbc2fff; 2027-01-02T01:00:00+00:00 | 17 | 1.0 (2.5, 3.5) | 7%"
    assert structure(one) == structure(other)
    assert structure(one) != structure(other.replace(" | 7%", ""))
    assert structure("a bagged deed") == "a bagged deed"


def test_every_section_shows_its_results_or_how_to_get_them() -> None:
    empty, charts = render_page(PAGE.read_text(encoding="utf-8"), [])
    assert charts == {}
    assert empty.count("*Not measured yet: `python -m ") == len(sections())
    filled, charts = render_page(empty, [made_up()])
    assert set(charts) == {"benchmarks-concurrency", "benchmarks-width", "benchmarks-breakdown"}
    for name in charts:
        assert f"]({name}.svg)" in filled
    with pytest.raises(InvalidRequestError, match="results of width"):
        render_page(empty.replace(markers("width")[1], ""), [])


def test_ratios_compare_what_differs_in_one_thing_only() -> None:
    lines = throughput_report.ratios_table(made_up()).splitlines()
    assert len(lines) == 2 + 9
    assert lines[2] == "| 1 | 64 | 24 | 1.50 | 3.00 | 4.50 |"
    one_way = made_up()
    one_way["cases"] = [case for case in one_way["cases"] if case["context"] == "reuse"]
    assert throughput_report.ratios_table(one_way) == ""


def test_scaling_is_drawn_over_one_thing_at_a_time() -> None:
    [chart] = throughput_report.concurrency([made_up()]).charts.values()
    assert isinstance(chart, LineChart)
    assert len(chart.lines) == 2 * 9  # with the lock-step baseline of each
    assert (chart.lines[0].x, chart.lines[0].y) == ((1, 2, 4), (90, 180, 360))
    block = throughput_report.width([made_up()])
    [chart] = block.charts.values()
    assert isinstance(chart, LineChart)
    assert chart.lines[0].x == (2, 4, 10)
    assert "| 10 | 10,240 | 113.8 | 11.11 | 1.00 |" in block.text


def test_the_newest_result_of_a_workload_is_shown() -> None:
    old, other, new = made_up(), made_up(grid=16), made_up()
    new["ceilings"]["bandwidth"] = 1e9
    text = throughput_report.throughput([old, other, new]).text
    assert text.count("Workload: ") == 2
    assert "read 1.0 GB/s" in text
    assert latest([old, other, new], "workload.grid") == [other, new]


def test_equal_charts_are_equal_files() -> None:
    chart = LineChart("title", "x", "y", (Line("a", (1.0, 2.0), (3.0, 4.0), ((2.5, 3.5), (3.0, 5.0))),))
    assert svg(chart) == svg(chart)
    assert "title</text>" in svg(chart)


def test_bars_of_one_name_are_two_bars() -> None:
    assert svg(BarChart("title", "ms", ("name", "name"), {"part": (1.0, 2.0)})).count("name</text>") == 2


def test_bars_tell_caches_apart() -> None:
    chart = throughput_report.breakdown([made_up(), made_up(kv_cache_dtype="fp8")]).charts["benchmarks-breakdown"]
    assert isinstance(chart, BarChart)
    plain, small = chart.rows[0], chart.rows[len(chart.rows) // 2]
    assert small == plain.replace(":", ", fp8 cache:")


def test_results_are_appended_and_read_oldest_first(tmp_path: Path) -> None:
    append_result(tmp_path / "new" / "b.jsonl", {"benchmark": "b", "date": "2026-02"})
    append_result(tmp_path / "new" / "b.jsonl", {"benchmark": "b", "date": "2026-01"})
    append_result(tmp_path / "new" / "a.jsonl", {"benchmark": "a", "date": "2026-03"})
    assert [(r["benchmark"], r["date"]) for r in read_results(tmp_path / "new")] == [
        ("b", "2026-01"), ("b", "2026-02"), ("a", "2026-03"),
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), [("{", "line 2 is not JSON"), ('{"a": 1}', "no `benchmark`")])
def test_wrong_results_are_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"benchmark": "b", "date": "2026"}}\n{line}\n')
    with pytest.raises(InvalidRequestError, match=message):
        read_results(tmp_path)


def test_the_command_writes_page_and_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("before\n" + "".join(begin + end for begin, end in map(markers, sections())) + "after\n")
    (tmp_path / "results").mkdir()
    append_result(tmp_path / "results" / "throughput.jsonl", made_up())
    arguments = ["bench", "report", "--results", str(tmp_path / "results"), "--page", str(page)]
    assert cli.main(arguments) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written[0] == page and {path.suffix for path in written[1:]} == {".svg"}
    assert all(path.is_file() for path in written)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert cli.main([*arguments, "--no-charts"]) == 0
    assert page.read_text() == text
    assert cli.main([*arguments[:-1], str(tmp_path / "none.md")]) == 2
    assert "there is no page" in capsys.readouterr().err


def test_starts_are_counted_in_medians(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every start takes as long as its number."""
    numbers = iter((1.0, 2.0, 3.0))

    def start(arguments: list[str]) -> startup.Start:
        n = next(numbers)
        return startup.Start(n, 2 * n, 3 * n, 100 * n, 200 * n, 300 * n, 50.0, 1.0)

    monkeypatch.setattr(startup, "start_in_child", start)
    out = tmp_path / "startup.jsonl"
    assert startup.main(["--model-shape", "B", "--repeat", "3", "--json", str(out)]) == 0
    assert "| GPT-B, bfloat16, 16 lanes | 2.0 | 4.0 | 6.0 | 200 | 400 | 600 | 50 | 1.0 |" in capsys.readouterr().out
    assert [start["engine"] for start in json.loads(out.read_text())["starts"]] == [2, 4, 6]
    assert next(numbers, None) is None
