"""`panoserve endless` around the engine: what is written as it goes, Ctrl-C, going on, and how it says no.

The engine draws codes that follow from their place (the frontier, the decoder and all files are real).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fake_drawing import CAPTION, CLASS, FakeEngine, Run, run_command, write_folder
from PIL import Image
from vq_weights import TINY_VQ, filled_vq

import panoserve
from panoserve import PanoramaRequest, endless_folder
from panoserve.cli import main
from panoserve.endless_folder import EndlessFolder, read_state
from panoserve.serve.endless import Endless, Frontier

VQ = filled_vq(replace(TINY_VQ, channel_multipliers=(1, 1, 1, 1), codebook_size=64, norm_groups=1))


class EndlessEngine(FakeEngine):
    """A crop is 4 codes of 8 pixels, so a tile is 64 pixels."""

    vq = VQ
    interrupt: ClassVar[int | None] = None  # the segment, counted from 0, that Ctrl-C ends

    def endless(self, request: PanoramaRequest, advance: Callable[[int], Any], **options: Any) -> Endless:
        return Endless(self, Frontier(request, self.config, self.context, **options), advance)  # type: ignore[arg-type]

    def draw(self, requests: list[PanoramaRequest], advance: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
        for index, request in enumerate(requests):
            segments = FakeEngine.started[-1]["requests"]
            if len(segments) == EndlessEngine.interrupt:
                raise KeyboardInterrupt
            segments.append(request)
            assert request.part is not None and request.seed is not None
            canvas = request.canvas(self.config)
            row = torch.arange(canvas.rows)[:, None] + request.part.row
            column = torch.arange(canvas.columns) + request.part.column
            codes = (row * 5 + column // 3 + request.seed) % self.config.vocab_size
            advance(codes.numel())
            yield index, SimpleNamespace(codes=codes, truncated=False)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(panoserve), "Engine", EndlessEngine)
    monkeypatch.setattr(FakeEngine, "started", [])
    monkeypatch.setattr(EndlessEngine, "interrupt", None)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `panoserve endless` with a model that takes captions; returns (exit code, stdout, stderr)."""
    model = write_folder(tmp_path / "model", CAPTION)

    def run(*arguments: object) -> tuple[int, str, str]:
        return run_command(capfd, "endless", *arguments, "--model", model)

    return run


def tiles_of(folder: Path) -> list[np.ndarray]:
    """Pixels of every tile; there must be nothing but tiles, preview and state."""
    tiles = sorted(folder.glob("tile-*.png"))
    others = {path.name for path in folder.iterdir()} - {path.name for path in tiles}
    assert others == {"preview.png", "endless.json"}
    return [np.asarray(Image.open(path)) for path in tiles]


def same(one: Path, other: Path) -> bool:
    pairs = zip(tiles_of(one), tiles_of(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_tiles_preview_and_state_are_written(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code, stdout, stderr = run("hills", "--max-width", 250, "--crops", 2, "--seed", 5, "-o", out)
    assert code == 0, stderr
    assert stdout == f"{out}: 250 x 32 pixels in 4 tiles, seed 5\n"
    tiles = tiles_of(out)
    assert [tile.shape for tile in tiles] == [(32, 64, 3)] * 3 + [(32, 58, 3)]
    assert np.array_equal(np.asarray(Image.open(out / "preview.png")), np.concatenate(tiles, axis=1))
    state = read_state(out)
    assert (state.record.prompt, state.record.width, state.record.seed, state.tiles) == ("hills", 250, 5, 3)
    assert state.end(1) * 8 >= 250
    segments = FakeEngine.started[-1]["requests"]
    assert [request.part.column for request in segments] == [0, 6, 12, 18, 24, 30]
    assert [request.width for request in segments] == [56] * 5 + [32]  # two crops each, then the one that is missing


def test_it_grows_downwards(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sizes = ("--down", "--width", 48, "--max-height", 100, "--crops", 2)
    code, stdout, _ = run("hills", *sizes, "-o", out, "--json", "--seed", 1)
    assert code == 0
    facts = json.loads(stdout)
    assert facts == {
        "path": str(out), "width": 48, "height": 100, "tiles": 2, "seed": 1, "interrupted": False
    }  # fmt: skip
    assert [tile.shape for tile in tiles_of(out)] == [(64, 48, 3), (36, 48, 3)]
    assert run("--resume", "--max-height", 150, "-o", out)[0] == 0
    assert run("hills", *sizes[:-3], 150, "--crops", 3, "--seed", 1, "-o", tmp_path / "b")[0] == 0
    assert same(out, tmp_path / "b")


def test_ctrl_c_leaves_what_is_written_and_resume_goes_on(run: Run, tmp_path: Path) -> None:
    """The same tiles as without a stop, bit for bit, and the preview made whole again."""
    out, straight = tmp_path / "out", tmp_path / "straight"
    common = ("hills", "--crops", 2, "--seed", 3, "--at", 180, "a sea")
    EndlessEngine.interrupt = 5
    code, stdout, _ = run(*common, "-o", out)
    assert code == 130
    assert stdout == f"{out}: 192 x 32 pixels in 3 tiles, seed 3; stopped, go on with --resume\n"
    tiles = tiles_of(out)
    assert [tile.shape for tile in tiles] == [(32, 64, 3)] * 3
    assert np.array_equal(np.asarray(Image.open(out / "preview.png")), np.concatenate(tiles, axis=1))
    EndlessEngine.interrupt = None
    assert run("--resume", "-o", out, "--max-width", 400)[0] == 0
    assert FakeEngine.started[-1]["requests"][0].part.column == 30
    assert run(*common, "-o", straight, "--max-width", 400)[0] == 0
    assert same(out, straight)
    assert (out / "preview.png").read_bytes() == (straight / "preview.png").read_bytes()
    assert read_state(out).to_json() == read_state(straight).to_json()
    entries = read_state(out).record.prompts
    assert entries == [{"prompt": "a sea", "left": 180}]


def test_ctrl_c_before_anything_is_drawn(run: Run, tmp_path: Path) -> None:
    EndlessEngine.interrupt = 0
    code, stdout, _ = run("hills", "-o", tmp_path / "out", "--seed", 3)
    assert code == 130
    assert stdout == f"{tmp_path / 'out'}: 0 x 32 pixels in 0 tiles, seed 3; stopped too early to go on from\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("widths", [(100, 300), (64, 65, 300), (33, 207, 300)])
def test_a_limit_can_be_raised(run: Run, tmp_path: Path, widths: tuple[int, ...]) -> None:
    """Where the drawing stopped before, nothing is to be seen: that tile is drawn again."""
    out, straight = tmp_path / "out", tmp_path / "straight"
    assert run("hills", "--seed", 1, "--crops", 3, "--max-width", widths[0], "-o", out)[0] == 0
    for width in widths[1:]:
        assert run("--resume", "--max-width", width, "-o", out)[0] == 0
    assert run("hills", "--seed", 1, "--crops", 3, "--max-width", widths[-1], "-o", straight)[0] == 0
    assert same(out, straight)


def test_no_tile_of_an_earlier_end_stays_behind_a_stop(run: Run, tmp_path: Path) -> None:
    """A limit leaves tiles for the time being; one that is not drawn again does not join what now is before it."""
    out = tmp_path / "out"
    assert run("hills", "--seed", 1, "--crops", 3, "--max-width", 300, "-o", out)[0] == 0
    Image.new("RGB", (8, 32)).save(out / f"tile-{len(tiles_of(out)):05d}.png")
    EndlessEngine.interrupt = 0
    code, stdout, _ = run("--resume", "--max-width", 900, "-o", out)
    assert code == 130 and f" in {len(tiles_of(out))} tiles" in stdout


def test_a_failure_keeps_what_is_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from panoserve.errors import PanoramaFailedError

    out, draw = tmp_path / "out", EndlessEngine.draw

    def fail(self: EndlessEngine, requests: Any, advance: Any) -> Iterator[tuple[int, Any]]:
        if len(FakeEngine.started[-1]["requests"]) == 4:
            yield 0, PanoramaFailedError("the engine is ill")
        else:
            yield from draw(self, requests, advance)

    monkeypatch.setattr(EndlessEngine, "draw", fail)
    code, _, stderr = run("hills", "--crops", 2, "--seed", 3, "-o", out)
    assert code == 1
    assert stderr.splitlines()[-1] == "panoserve: error: the engine is ill"
    assert len(tiles_of(out)) == read_state(out).tiles == 2


def test_the_preview_is_made_smaller_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless_folder, "PREVIEW_PIXELS", 100)
    files = EndlessFolder(tmp_path, axis=1)
    for value in range(9):
        files.add(Image.new("RGB", (40, 16), (20 * value, 0, 0)))
        files.save_preview()
        with Image.open(tmp_path / "preview.png") as preview:
            assert preview.width <= 100
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.size == (90, 4)
        assert [preview.getpixel((10 * i + 5, 2)) for i in range(9)] == [(20 * i, 0, 0) for i in range(9)]


BAD = {
    "no prompt": ([], "got none of prompt, label and features"),
    "two subjects": (["hills", "--label", "1"], "label"),
    "a share": (["hills", "--at", "0.5", "a sea"], "no width to take a share of"),
    "a limit of the other side": (["hills", "--max-height", "900"], "got --max-height, but the panorama grows to"),
    "a length": (["hills", "--width", "900"], "got --width, but the panorama grows to the right"),
    "a length downwards": (["hills", "--down", "--height", "900"], "got --height, but the panorama grows downwards"),
    "a height": (["hills", "--height", "33"], "height is 33"),
    "no crops": (["hills", "--crops", "0"], "crops is 0"),
    "nothing to go on from": (["--resume"], "holds no endless.json"),
    "a stride": (["hills", "--stride", "9"], "stride is 9"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_requests_are_refused(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, stdout, stderr = run(*arguments, "-o", tmp_path / "out")
    assert (code, stdout) == (2, "")
    [line] = stderr.splitlines()
    assert line.startswith("panoserve: error: ") and message in line
    assert FakeEngine.started == [] and not (tmp_path / "out").exists()


def test_folders_are_refused(run: Run, tmp_path: Path) -> None:
    """One that is not empty, what is no folder, one that is longer already, and a state that is none."""
    out = tmp_path / "out"
    assert run("hills", "--seed", 1, "--max-width", 100, "-o", out)[0] == 0
    before = {path: path.read_bytes() for path in out.iterdir()}

    def refused(*arguments: object) -> str:
        code, _, stderr = run(*arguments)
        assert code == 2
        assert {path: path.read_bytes() for path in out.iterdir()} == before
        return stderr

    assert "is not empty; name another folder, or go on in it with --resume" in refused("hills", "-o", out)
    assert "is a file" in refused("hills", "-o", out / "endless.json")
    assert "is 100 pixels long already" in refused("--resume", "--max-width", 100, "-o", out)
    assert "got seed, prompt; leave it out" in refused("hills", "--seed", 1, "--resume", "-o", out)
    assert "got label" in refused("--label", 0, "--resume", "-o", out)
    assert "got --max-height" in refused("--resume", "--max-height", 900, "-o", out)
    for broken in ("", "[]", "{}", json.dumps({**json.loads(before[out / "endless.json"]), "codes": [1, 2]})):
        (out / "endless.json").write_text(broken)
        before[out / "endless.json"] = broken.encode()
        assert "endless.json cannot be read" in refused("--resume", "-o", out)


def test_a_missing_tile_is_said(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("hills", "--seed", 1, "--max-width", 200, "-o", out)[0] == 0
    (out / "tile-00001.png").unlink()
    code, _, stderr = run("--resume", "--max-width", 300, "-o", out)
    assert code == 2
    assert "tile-00001.png cannot be read" in stderr.splitlines()[-1]


def test_classes_and_a_model_without_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    classes, codes = write_folder(tmp_path / "classes", CLASS), write_folder(tmp_path / "codes", CLASS, vq=False)
    at = ("--at", "40", "7", "--max-width", "100", "-o", str(out))
    assert main(["endless", "--label", "3", "--model", str(classes), *at]) == 0
    assert main(["endless", "--label", "3", "--model", str(codes), "-o", str(tmp_path / "other")]) == 2
    assert "has no vq/" in capfd.readouterr().err
