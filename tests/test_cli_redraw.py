"""`panoserve redraw` around the engine (a fake): a picture and a mask in, the record out, and how it says no."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_drawing import CAPTION, FakeEngine, Run, run_command, write_folder
from PIL import Image

import panoserve
from panoserve.cli_record import read_record

WIDTH, HEIGHT = 61, 45
HOLE = (20, 10, 37, 33)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `panoserve redraw ... --model M` in the test's folder, which holds pictures; (exit code, stdout, stderr)."""
    monkeypatch.setitem(vars(panoserve), "Engine", FakeEngine)
    monkeypatch.setattr(FakeEngine, "started", [])
    monkeypatch.setattr(FakeEngine, "truncates", False)
    monkeypatch.chdir(tmp_path)
    captions = write_folder(tmp_path / "captions", CAPTION)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    picture.save("photo.png")
    mask = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    mask.save("opaque.png")
    mask.paste((0, 0, 0, 0), HOLE)
    mask.save("mask.png")
    mask.crop((0, 0, 60, 45)).save("narrow.png")
    clear = picture.copy()
    clear.putalpha(mask.getchannel("A"))
    clear.save("clear.png")
    Image.new("L", picture.size, 0).save("black.png")

    def run(command: str, *arguments: object, model: Path = captions) -> tuple[int, str, str]:
        return run_command(capfd, command, *arguments, "--model", model)

    return run


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as picture:
        return np.array(picture)


@pytest.mark.parametrize("source", [["photo.png", "--mask", "mask.png"], ["clear.png"]])
def test_what_is_transparent_is_drawn_and_all_else_kept(source: list[str], run: Run) -> None:
    code, stdout, stderr = run("redraw", *source, "--prompt", "hills", "--seed", 5, "-o", "new/out.png")
    assert code == 0, stderr
    assert stdout.startswith(f"new/out.png: {WIDTH} x {HEIGHT} pixels, seed 5, picture ")
    kept = pixels("mask.png")[..., 3] == 255
    assert np.array_equal(pixels("new/out.png")[kept], pixels("photo.png")[kept])
    assert not np.array_equal(pixels("new/out.png"), pixels("photo.png"))
    record = read_record(Path("new/out.png"))
    assert (record.width, record.height, record.prompt, record.seed) == (WIDTH, HEIGHT, "hills", 5)
    assert record.redrawn and not record.extends


def test_a_redrawn_picture_is_not_drawn_again_from_itself(run: Run) -> None:
    run("redraw", "clear.png", "--prompt", "hills", "--seed", 5, "-o", "out.png")
    FakeEngine.started.clear()
    code, stdout, stderr = run("replay", "out.png")
    assert (code, stdout, FakeEngine.started) == (2, "", [])
    assert "was made by `panoserve redraw`" in stderr and "--seed 5" in stderr


def test_results_as_json(run: Run) -> None:
    code, stdout, _ = run("redraw", "clear.png", "--prompt", "hills", "-o", "out.png", "--json")
    answer = json.loads(stdout)
    assert code == 0 and answer["path"] == "out.png" and answer["request"]["redrawn"] is True
    assert np.array(answer["drawings"]["picture"]["codes"]).shape == (6, 8)


def test_the_context_that_was_asked_for_is_drawn_in_and_recorded(run: Run) -> None:
    code, _, stderr = run("redraw", "clear.png", "--prompt", "hills", "--context", "recompute", "-o", "out.png")
    assert code == 0, stderr
    [request] = FakeEngine.started[-1]["requests"]
    assert request.context == "recompute" == read_record(Path("out.png")).context


def test_a_picture_that_is_hardly_transparent_is_named(run: Run) -> None:
    Image.new("RGBA", (WIDTH, HEIGHT), (1, 2, 3, 200)).save("hazy.png")
    code, _, stderr = run("redraw", "hazy.png", "--prompt", "hills", "-o", "out.png")
    assert code == 2 and "picture hazy.png is nowhere (more than half) transparent" in stderr


BAD = {
    "no hole": (["photo.png"], "picture photo.png is nowhere (more than half) transparent"),
    "an opaque mask": (["photo.png", "--mask", "opaque.png"], "the mask is nowhere transparent"),
    "a black mask": (["photo.png", "--mask", "black.png"], "make transparent what is to be redrawn"),
    "another size": (["photo.png", "--mask", "narrow.png"], "the mask is 60x45 pixels, but the picture is 61x45"),
    "no picture": (["none.png"], "picture none.png does not exist"),
    "no mask": (["photo.png", "--mask", "none.png"], "mask none.png does not exist"),
    "another kind of file": (["clear.png", "-o", "out.jpg"], "must end in .png"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_before_the_engine_starts(case: str, run: Run) -> None:
    arguments, message = BAD[case]
    output = [] if "-o" in arguments else ["-o", "out.png"]
    code, stdout, stderr = run("redraw", *arguments, *output, "--prompt", "hills")
    assert (code, stdout, FakeEngine.started) == (2, "", [])
    assert stderr.startswith("panoserve: error: ") and len(stderr.splitlines()) == 1
    assert message in stderr
    assert not Path("out.png").exists()
