"""`panoserve extend` around the engine (a fake): pictures in, the record out, its replay, and how it says no."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_drawing import CAPTION, CLASS, FakeEngine, Run, run_command, write_folder
from PIL import Image

import panoserve
from panoserve.cli_record import read_record
from panoserve.vq.images import MAX_PICTURE

CROP = CAPTION.grid.crop_pixels


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(panoserve), "Engine", FakeEngine)
    monkeypatch.setattr(FakeEngine, "started", [])
    monkeypatch.setattr(FakeEngine, "truncates", False)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `panoserve COMMAND ... --model M` in the test's folder; returns (exit code, stdout, stderr)."""
    captions = write_folder(tmp_path / "captions", CAPTION)

    def run(command: str, *arguments: object, model: Path = captions) -> tuple[int, str, str]:
        return run_command(capfd, command, *arguments, "--model", model)

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (37, 33, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_a_picture_is_extended_recorded_and_drawn_again(run: Run, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.png"
    code, stdout, stderr = run("extend", photo, "--right", 20, "--left", 9, "--prompt", "hills", "--seed", 5, "-o", out)
    assert code == 0, stderr
    assert stdout.startswith(f"{out}: 62 x 37 pixels, seed 5, left ")
    assert np.array_equal(pixels(out)[:, 9:42], pixels(photo))
    record = read_record(out)
    assert (record.left, record.right, record.up, record.down) == (9, 20, 0, 0)
    assert (record.width, record.height, record.prompt, record.seed) == (62, 37, "hills", 5)
    code, stdout, stderr = run("replay", out, "--json")
    assert code == 0, stderr
    again = out.with_name("out-again.png")
    assert again.read_bytes() == out.read_bytes()
    answer = json.loads(stdout)
    assert (answer["path"], answer["truncated"], answer["request"]["left"]) == (str(again), False, 9)
    assert set(answer["drawings"]) == {"left", "right"}
    assert answer["drawings"]["left"]["stats"]["lanes"] == 2
    Image.fromarray(pixels(out)[:-1]).save(out, pnginfo=_info(out))
    code, _, stderr = run("replay", out)
    assert code == 2 and "is 62x36 pixels, not the 62x37 that it says" in stderr


def _info(path: Path) -> object:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in read_record(path).to_chunks().items():
        info.add_itxt(key, text)
    return info


def test_classes_scaling_and_a_long_prompt(run: Run, photo: Path, tmp_path: Path) -> None:
    out, classes = tmp_path / "out.png", write_folder(tmp_path / "classes", CLASS)
    FakeEngine.truncates = True
    code, _, stderr = run(
        "extend", photo, "--fit", 74, "--down", 8, "--up", 8, "--label", 3, "-o", out, model=classes
    )  # fmt: skip
    assert code == 0, stderr
    assert pixels(out).shape == (90, 66, 3)
    assert "the picture is 74 pixels high, but the model knows scenes of 32; --fit 32" in stderr
    assert "the prompt is longer" in stderr


def test_a_photograph_is_turned_upright(run: Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (40, 64), (9, 9, 9)).save(tmp_path / "a.jpg", exif=exif)
    code, _, stderr = run("extend", tmp_path / "a.jpg", "--right", 8, "--prompt", "hills", "-o", tmp_path / "out.png")
    assert code == 0, stderr
    assert pixels(tmp_path / "out.png").shape == (40, 72, 3)


def png_of_any_size(width: int, height: int) -> bytes:
    """A few bytes that claim to be a large picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_bad_pictures(folder: Path) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "bomb.png").write_bytes(png_of_any_size(9000, 9000))
    (folder / "greater.png").write_bytes(png_of_any_size(60000, 60000))
    (folder / "short.png").write_bytes(png_of_any_size(64, 64))
    Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (40, 40), (1, 2, 3, 128)).save(folder / "glass.png")
    Image.new("RGB", (40, 20)).save(folder / "flat.png")
    Image.new("RGB", (40, 40)).save(folder / "good.png")
    Image.new("RGB", (40, 40)).save(folder / "good.bmp")


BAD = {
    "no side": (["good.png"], "left, right, up and down are all 0"),
    "a negative side": (["good.png", "--left", "-1"], "left is -1"),
    "too far up": (["good.png", "--up", "33"], "at most one crop (32)"),
    "too flat": (["flat.png", "--right", "8"], "48x20 pixels, but must be at least one crop, 32x32"),
    "nothing to say": (["good.png", "--right", "8", "--prompt", ""], "expected some text"),
    "scaled to nothing": (["good.png", "--right", "8", "--fit", "0"], "--fit is 0"),
    "no file": (["none.png", "--right", "8"], "none.png does not exist"),
    "a folder": ([".", "--right", "8"], "picture . cannot be read"),
    "no picture": (["text.png", "--right", "8"], "expected PNG, JPEG or WebP"),
    "a format that is not taken": (["good.bmp", "--right", "8"], "expected PNG, JPEG or WebP"),
    "a bomb": (["bomb.png", "--right", "8"], "bomb.png is too large: it has 9000x9000 pixels; at most 80 million"),
    "a greater bomb": (["greater.png", "--right", "8"], "greater.png is far too large; at most 80 million"),
    "a damaged one": (["short.png", "--right", "8"], "short.png cannot be read"),
    "more than 8 bits": (["deep.png", "--right", "8"], "more than 8 bits"),
    "see-through": (["glass.png", "--right", "8"], "transparent in places"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_before_the_engine_starts(
    case: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad_pictures(tmp_path)
    arguments, message = BAD[case]
    prompt = [] if "--prompt" in arguments else ["--prompt", "hills"]
    code, stdout, stderr = run("extend", *arguments, *prompt, "-o", "out.png")
    assert (code, stdout, FakeEngine.started) == (2, "", [])
    assert stderr.startswith("panoserve: error: ") and len(stderr.splitlines()) == 1
    assert message in stderr
    assert not (tmp_path / "out.png").exists()


def test_the_limit_is_below_pillows_own() -> None:
    """So that no warning of Pillow's is the first word about a large picture."""
    assert Image.MAX_IMAGE_PIXELS is not None and MAX_PICTURE < Image.MAX_IMAGE_PIXELS


def test_a_model_without_tokenizer_is_refused(run: Run, photo: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "codes-only", CLASS, vq=False)
    code, _, stderr = run("extend", photo, "--right", 8, "--label", 1, "-o", tmp_path / "out.png", model=folder)
    assert code == 2 and "has no vq/" in stderr
