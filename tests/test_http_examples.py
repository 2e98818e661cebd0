"""The examples run as they are against the real server, and write what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from http_server import Server
from PIL import Image
from tiny_folder import TINY_CONFIG

pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SIZE = (6 * TINY_CONFIG.grid.crop_pixels, TINY_CONFIG.grid.crop_pixels)


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return image.size == SIZE


def test_one_picture(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "one.png"
    said = run(
        sys.executable, EXAMPLES / "openai_picture.py", "a sea", "--seed", "3", "-o", output, "--server", server.url
    )
    assert "seed 3" in said and is_picture(output)


def test_a_stream(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "two.png"
    said = run(sys.executable, EXAMPLES / "openai_stream.py", "a sea", "-o", output, "--server", server.url)
    assert said.count("partial_image") in (1, 2, 3) and said.count("completed") == 1
    assert is_picture(output) and is_picture(tmp_path / "two-0.png")


def test_several_at_once(server: Server, tmp_path: Path) -> None:
    run(sys.executable, EXAMPLES / "openai_async.py", "a sea", "a sky", "-o", tmp_path / "all", "--server", server.url)
    assert [is_picture(path) for path in sorted((tmp_path / "all").iterdir())] == [True, True]


def test_an_edit(server: Server, tmp_path: Path) -> None:
    side = TINY_CONFIG.grid.crop_pixels
    Image.new("RGB", (side, side), (40, 80, 120)).save(tmp_path / "photo.png")
    mask = Image.new("RGBA", (side, side), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (8, 8, 20, 20))
    mask.save(tmp_path / "mask.png")
    for option, value, width in (("--right", "20", side + 20), ("--mask", tmp_path / "mask.png", side)):
        example = (sys.executable, EXAMPLES / "openai_edit.py", tmp_path / "photo.png", "a sea", option, value)
        said = run(*example, "-o", tmp_path / "edited.png", "--server", server.url)
        assert f"{width}x{side}" in said
        with Image.open(tmp_path / "edited.png") as image:
            assert image.size == (width, side)


def test_plain_requests(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "three.webp"
    run(sys.executable, EXAMPLES / "requests_picture.py", "a sea", "-o", output, "--server", server.url)
    assert is_picture(output)


def test_without_an_end(server: Server, tmp_path: Path) -> None:
    side, limit = TINY_CONFIG.grid.crop_pixels, 5 * TINY_CONFIG.grid.crop_pixels
    example = (sys.executable, EXAMPLES / "requests_endless.py", "a sea", "--then", str(3 * side), "the night")
    said = run(*example, "--limit", str(limit), "--crops", "3", "-o", tmp_path / "tiles", "--server", server.url)
    assert f"from pixel {3 * side} on: the night" in said
    widths = []
    for path in sorted((tmp_path / "tiles").iterdir()):
        with Image.open(path) as image:
            assert image.height == side
            widths.append(image.width)
    assert sum(widths) == limit and len(widths) > 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "four.png"
    assert run(EXAMPLES / "curl.sh", "a sea", output, server.url) == f"{output}\n"
    assert is_picture(output)


def test_the_list_of_examples_is_complete() -> None:
    listed = set(re.findall(r"\]\(([a-z_]+\.(?:py|sh))\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
