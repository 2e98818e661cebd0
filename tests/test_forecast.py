"""`panoserve plan`: the forecast counts what simulate.py counts, and its time is the floor of every step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_drawing import CLASS, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from panoserve.benchmarks.ceilings import read_weights
from panoserve.benchmarks.forecast import MACHINES, Machine, forecast, kv_bytes_per_slot
from panoserve.cli import main
from panoserve.configs.grid import Canvas
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.picture import plan_text
from panoserve.redirect.plan import CONTEXTS
from panoserve.redirect.simulate import predict

SLOW_MEMORY, SLOW_MATHS = Machine(1.0, 1e30), Machine(1e30, 1.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 9), st.integers(4, 14), st.integers(1, 4), st.sampled_from(CONTEXTS), st.integers(1, 7))
def test_it_counts_what_predict_counts(rows: int, columns: int, stride: int, context: str, prefix: int) -> None:
    plan = canvas_plan(Canvas(rows, columns), CLASS.grid, stride, context)  # type: ignore[arg-type]
    answer, expected = forecast(plan, CLASS, SLOW_MATHS, prefix_rows=prefix, itemsize=2), predict(plan, prefix)
    counted = (answer.steps, answer.drawn, answer.forward_tokens, answer.lanes, answer.most_lanes)
    assert counted == (
        expected.steps, expected.drawn, expected.forward_tokens, expected.lanes, expected.most_lanes
    )  # fmt: skip
    # Where only arithmetic takes time, it is that of all inputs, in two streams.
    assert answer.seconds == pytest.approx(4 * read_weights(CLASS) * expected.forward_tokens)


def test_where_only_memory_takes_time() -> None:
    """One crop of 4 x 4: 16 steps read the weights, and 1, 2, ... 16 slots; four at once read the weights together."""
    plan = canvas_plan(Canvas(4, 4), CLASS.grid, 4, "reuse")
    weights, kv = 2 * read_weights(CLASS), kv_bytes_per_slot(CLASS, 2)
    alone = forecast(plan, CLASS, SLOW_MEMORY, prefix_rows=1, itemsize=2)
    assert alone.seconds == pytest.approx(16 * weights + kv * sum(range(1, 17)))
    four = forecast(plan, CLASS, SLOW_MEMORY, prefix_rows=1, itemsize=2, panoramas=4)
    assert four.seconds == pytest.approx(16 * weights + 4 * kv * sum(range(1, 17)))
    assert (four.steps, four.drawn, four.lanes, four.kv_bytes) == (16, 64, 4, 4 * 17 * kv)
    assert kv_bytes_per_slot(replace(CLASS, unconditional=False), 2) == kv // 2


def test_the_picture_numbers_the_crops() -> None:
    plan = canvas_plan(Canvas(7, 7), CLASS.grid, 3, "reuse")
    assert plan_text(plan, 80).splitlines() == ["0000222", "0000222", "1111333"]
    known = [[column < 4 for column in range(7)] for _ in range(4)]
    assert plan_text(canvas_plan(Canvas(4, 7), CLASS.grid, 3, "reuse", known=known), 80).splitlines()[0] == "....000"
    assert all(len(line) <= 5 for line in plan_text(plan, 5).splitlines())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "model", CLASS)
    arguments = ["plan", "--model", str(folder), "--size", "80x56", "--machine", "h100"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "canvas        10 x 7 codes, 6 crops" in shown
    assert "h100: 3,350 GB/s, 989.00 TFLOP/s" in shown
    assert main([*arguments, "--json", "--panoramas", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    plan = canvas_plan(Canvas(7, 10), CLASS.grid, 3, "reuse")
    expected = forecast(plan, CLASS, MACHINES["h100"], prefix_rows=1, itemsize=2, panoramas=3)
    assert (answer["steps"], answer["seconds"], answer["lanes"]) == (expected.steps, expected.seconds, 18)
    assert main(["plan", "--shape", "GPT-XL", "--size", "5120x512", "--machine", "a100"]) == 0
    assert "320 x 32 codes, 13 crops" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "GPT-B", "--model", "x"], "give either"),
        (["--shape", "GPT-B", "--prompt-rows", "121"], "takes 1 to 120"),
        (["--shape", "GPT-B", "--panoramas", "0"], "at least one"),
        (["--shape", "GPT-B", "--size", "600x512"], "nearest is 608"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--machine", "h100", *arguments]) == 2
    assert message in capsys.readouterr().err
