"""`panoserve generate --two-pass` around the engine (a fake): both passes asked for, the record, its replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_drawing import CAPTION, CLASS, FakeEngine, Run, run_command, write_folder

import panoserve
from panoserve.cli_record import read_record


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `panoserve COMMAND ... --model M` with the fake; returns (exit code, stdout, stderr)."""
    monkeypatch.setitem(vars(panoserve), "Engine", FakeEngine)
    monkeypatch.setattr(FakeEngine, "started", [])
    captions = write_folder(tmp_path / "captions", CAPTION)

    def run(command: str, *arguments: object, model: Path = captions) -> tuple[int, str, str]:
        return run_command(capfd, command, *arguments, "--model", model)

    return run


def test_two_passes_are_drawn_recorded_and_drawn_again(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    code, stdout, stderr = run("generate", "hills", "--two-pass", "--size", "192x64", "--seed", 5, "-o", out)
    assert code == 0, stderr
    first = "a first pass of 7 steps in 0.5 s, then 192 codes in 7 steps, 0.5 s"
    assert stdout == f"{out}: 192 x 64 pixels, seed 5, {first}\n"
    sizes = [(request.width, request.height) for request in FakeEngine.started[0]["requests"]]
    assert sizes == [(96, 32), (192, 64)]
    record = read_record(out)
    assert (record.hold, record.seed, record.width, record.height) == (0.5, 5, 192, 64)
    code, stdout, stderr = run("replay", out, "--json")
    assert code == 0, stderr
    assert out.with_name("out-again.png").read_bytes() == out.read_bytes()
    answer = json.loads(stdout)
    assert answer["request"]["hold"] == 0.5 and answer["coarse"]["steps"] == answer["stats"]["steps"] == 7
    one, two = (started["requests"][1] for started in FakeEngine.started)
    assert bool((one.given == two.given).all()), "the same codes are given again"


def test_codes_without_a_picture_and_another_share(run: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run(
        "generate", "hills", "--two-pass", "--hold", 0.2, "--size", "96x64", "--no-decode", "--json"
    )  # fmt: skip
    assert code == 0, stderr
    answer = json.loads(stdout)
    assert answer["request"]["hold"] == 0.2 and len(answer["codes"]) == 8
    code, stdout, _ = run("generate", "hills", "--size", "96x64", "--no-decode", "--json")
    plain = json.loads(stdout)
    assert plain["request"]["hold"] is None and "coarse" not in plain


def test_what_is_wrong_is_said_before_the_engine_starts(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    wrong = {
        "--hold says how a second pass is drawn; add --two-pass": ["--size", "96x64", "--hold", 0.5],
        "96x32 pixels, but two passes need more than one crop (32) each way": ["--two-pass", "--size", "96x32"],
        "hold is 2.0, but must be a number from 0 to 0.95": ["--two-pass", "--hold", 2, "--size", "96x64"],
    }
    for message, arguments in wrong.items():
        code, stdout, stderr = run("generate", "hills", *arguments, "-o", out)
        assert (code, stdout, FakeEngine.started) == (2, "", []) and message in stderr
    folder = write_folder(tmp_path / "codes-only", CLASS, vq=False)
    arguments = ["--label", 1, "--two-pass", "--size", "96x64", "--no-decode", "--json"]
    code, _, stderr = run("generate", *arguments, model=folder)
    assert code == 2 and "no vq/, which reads the first of two passes" in stderr
