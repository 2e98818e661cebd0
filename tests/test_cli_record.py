"""The record inside a picture survives the file, and files are written whole or not at all."""

from __future__ import annotations

import io
import os
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from panoserve.cli_files import PIECE, PIECES, fingerprint_files, fingerprint_model, write_atomically
from panoserve.cli_record import PREFIX, DrawRecord, read_record, write_png
from panoserve.errors import InvalidRequestError

RECORD = DrawRecord(
    prompt="a red sunset",
    label=None,
    features=None,
    features_fingerprint=None,
    width=96,
    height=32,
    stride=3,
    guidance=4.0,
    guidance_interval=-1,
    temperature=0.7,
    top_k=0,
    top_p=1.0,
    seed=2**63 - 1,
    context="reuse",
    dtype="bfloat16",
    model="pano-mini",
    model_fingerprint="0123456789ab",
    version="0.1.0",
)


@pytest.mark.parametrize(
    "prompt", ["", "sunset", "日没 – «rouge» 🌅", 'quotes " \\ and\nlines\ttabs', "nul \x00 inside"]
)
def test_a_picture_gives_its_record_back(tmp_path: Path, prompt: str) -> None:
    record = replace(RECORD, prompt=prompt)
    write_png(Image.new("RGB", (4, 2), (9, 8, 7)), tmp_path / "new" / "out.png", record)
    assert read_record(tmp_path / "new" / "out.png") == record
    with Image.open(tmp_path / "new" / "out.png") as picture:
        assert picture.getpixel((0, 0)) == (9, 8, 7)
        assert picture.info["Software"] == "panoserve 0.1.0"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.png"]


@given(
    prompt=st.text(),
    guidance=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**64),
)
def test_chunks_hold_any_value(prompt: str, guidance: float, seed: int) -> None:
    record = replace(RECORD, prompt=prompt, guidance=guidance, seed=seed)
    assert DrawRecord.from_chunks(record.to_chunks(), "test") == record


REQUIRED = [f.name for f in fields(DrawRecord) if f.default is MISSING and not str(f.type).endswith("None")]


def test_what_older_pictures_do_not_say_has_its_default() -> None:
    chunks = replace(RECORD, row_stride=2, loop=True).to_chunks()
    assert DrawRecord.from_chunks(chunks, "x.png") == replace(RECORD, row_stride=2, loop=True)
    del chunks[PREFIX + "row_stride"], chunks[PREFIX + "loop"]
    assert DrawRecord.from_chunks(chunks, "x.png") == RECORD


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_missing_chunk_is_named(missing: str) -> None:
    chunks = RECORD.to_chunks()
    del chunks[PREFIX + missing]
    with pytest.raises(InvalidRequestError, match=rf"x\.png carries no panoserve\.{missing} chunk"):
        DrawRecord.from_chunks(chunks, "x.png")


@pytest.mark.parametrize(
    ("name", "text"),
    [("seed", "1.5"), ("seed", "true"), ("width", '"96"'), ("guidance", "{"), ("context", "3"), ("loop", "1")],
)
def test_a_chunk_of_the_wrong_type_is_named(name: str, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"panoserve\.{name} = .*expected JSON of type"):
        DrawRecord.from_chunks({**RECORD.to_chunks(), PREFIX + name: text}, "x.png")


def test_exactly_one_condition() -> None:
    for chunks in (replace(RECORD, prompt=None).to_chunks(), replace(RECORD, label=3).to_chunks()):
        with pytest.raises(InvalidRequestError, match="exactly one of prompt, label and features"):
            DrawRecord.from_chunks(chunks, "x.png")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00")
    Image.new("RGB", (2, 2)).save(tmp_path / "photo.jpg")
    info = PngInfo()
    info.add_text("parameters", "another program's")
    Image.new("RGB", (2, 2)).save(tmp_path / "other.png", pnginfo=info)
    for name, message in (
        ("absent.png", "does not exist"),
        ("text.png", "not a PNG picture"),
        ("cut.png", "not a PNG picture"),
        ("photo.jpg", "not a PNG picture"),
        ("other.png", r"carries no panoserve\.width chunk"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            read_record(tmp_path / name)


def test_a_picture_too_large_to_open_still_says_what_it_is(tmp_path: Path) -> None:
    """Only the header is read: Pillow's limit on pixels (a decompression bomb) does not stand in the way."""
    write_png(Image.new("1", (200_000, 1_000)), tmp_path / "wide.png", RECORD)
    assert read_record(tmp_path / "wide.png") == RECORD


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")

    def fail(file: io.BufferedIOBase) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("length", [245, 246, 255])
def test_names_of_every_length_are_written(tmp_path: Path, length: int) -> None:
    target = tmp_path / (length * "a")
    write_atomically(target, lambda file: file.write(b"x"))
    assert list(tmp_path.iterdir()) == [target]


def test_fingerprints_follow_content_not_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "vq").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "vq" / "model.safetensors").write_bytes(bytes(PIECE * PIECES * 2))
        (tmp_path / name / "README.md").write_text(name)  # not part of the model
    one = fingerprint_model(tmp_path / "one")
    assert one == fingerprint_model(tmp_path / "two")
    assert len(one) == 12
    for position in (0, PIECE * PIECES * 2 - 1):
        with (tmp_path / "two" / "vq" / "model.safetensors").open("r+b") as file:
            file.seek(position)
            file.write(b"x")
        changed = fingerprint_model(tmp_path / "two")
        assert changed != one
        one = changed


def test_small_files_are_hashed_whole(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    seen = set()
    for position in (0, 1000, PIECE * PIECES - 1):
        content = bytearray(PIECE * PIECES)
        content[position] = 1
        path.write_bytes(content)
        seen.add(fingerprint_files([path]))
    assert len(seen) == 3
