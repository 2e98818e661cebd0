"""How the command line says no: exit code 2 and one line for what is wrong, 1 for what fails, never a traceback.

The engine is a fake (tests/fake_drawing.py); requests, model folders and files are real.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_drawing import CAPTION, FakeEngine, Run, write_folder
from PIL import Image
from safetensors.torch import save_file

BAD = {
    "both conditions": (["hills", "--label", "1"], "label"),
    "no condition": ([], "prompt"),
    "a label for a caption model": (["--label", "1"], "label"),
    "empty prompt": ([""], "prompt"),
    "blank prompt": (["  \n "], "prompt"),
    "width not a multiple": (["hills", "--size", "100x32"], "the nearest is 96"),
    "height not a multiple": (["hills", "--size", "96x33"], "the nearest is 32"),
    "smaller than a code": (["hills", "--size", "96x3"], "the nearest is 8"),
    "size that is no size": (["hills", "--size", "wide"], "expected WIDTHxHEIGHT"),
    "stride 0": (["hills", "--stride", "0"], "from 1 to 4"),
    "stride above the grid": (["hills", "--stride", "5"], "from 1 to 4"),
    "row stride above the grid": (["hills", "--size", "96x64", "--row-stride", "5"], "row_stride is 5"),
    "a place that is none": (["hills", "--at", "east", "a city"], "got --at east"),
    "a share above one": (["hills", "--at", "1.5", "a city"], "left of a prompt is 1.5"),
    "a missing prompts file": (["--prompts", "absent.yaml"], "absent.yaml does not exist"),
    "a blend that is none": (["hills", "--blend", "wide"], "expected pixels, or a share"),
    "a loop of one crop": (["hills", "--size", "32x64", "--loop"], "wider than one crop: at least 40"),
    "a negative prompt without guidance": (["hills", "--negative", "rain", "--guidance", "1"], "has no effect"),
    "a blank negative prompt": (["hills", "--negative", " "], "expected some text"),
    "guidance below 0": (["hills", "--guidance", "-3"], "guidance"),
    "guidance above 100": (["hills", "--guidance", "101"], "guidance"),
    "guidance nan": (["hills", "--guidance", "nan"], "guidance"),
    "guidance that is no number": (["hills", "--guidance", "much"], "--guidance"),
    "temperature below 0": (["hills", "--temperature", "-0.1"], "temperature"),
    "temperature infinite": (["hills", "--temperature", "inf"], "temperature"),
    "top_p above 1": (["hills", "--top-p", "1.5"], "top_p"),
    "top_p 0": (["hills", "--top-p", "0"], "top_p"),
    "top_k negative": (["hills", "--top-k", "-5"], "top_k"),
    "negative seed": (["hills", "--seed", "-1"], "seed"),
    "cache size nan": (["hills", "--kv-cache-gib", "nan"], "expected a number of GiB above 0"),
    "cache size 0": (["hills", "--kv-cache-gib", "0"], "expected a number of GiB above 0"),
    "cache size that is no number": (["hills", "--kv-cache-gib", "big"], "expected a number of GiB above 0"),
    "unknown context": (["hills", "--context", "copy"], "--context"),
    "unknown flag": (["hills", "--colour", "red"], "--colour"),
    "abbreviated flag": (["hills", "--temp", "1"], "--temp"),
    "features that are not there": (["--features", "absent.npy"], "absent.npy does not exist"),
    "features of a wrong kind": (["--features", "photo.jpg"], "must end in .npy or .safetensors"),
}


def assert_refused(result: tuple[int, str, str], message: str, folder: Path, before: set[Path]) -> None:
    """Exit code 2, one line that says `message`, no engine, nothing written."""
    code, stdout, stderr = result
    assert code == 2
    assert stdout == ""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("panoserve: error: ")
    assert message in lines[0]
    assert FakeEngine.started == []
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_before_the_engine_starts(
    case: str, run: Run, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    result = run("generate", *arguments, "--model", captions, "-o", tmp_path / "new" / "out.png")
    assert_refused(result, message, tmp_path, before)


@pytest.mark.parametrize("label", [-1, 10, 99])
def test_a_label_out_of_range_is_refused(label: int, run: Run, classes: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    result = run("generate", "--label", label, "--model", classes, "-o", tmp_path / "out.png")
    assert_refused(result, "9", tmp_path, before)  # the largest label that exists


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.full((2, 6), np.nan), "nan"),
        (np.array([[0.0] * 5 + [np.inf]]), "nan"),
        (np.zeros((2, 7)), "6"),
        (np.zeros(6), "[n, 6]"),
        (np.zeros((6, 6)), "5"),
        (np.zeros((0, 6)), "5"),
    ],
    ids=["nan", "infinite", "wrong width", "one dimension", "too many rows", "no rows"],
)
def test_bad_features_are_refused(features: Any, message: str, run: Run, captions: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", features)
    before = set(tmp_path.rglob("*"))
    arguments = ("--features", tmp_path / "features.npy", "--model", captions, "-o", tmp_path / "out.png")
    code, stdout, stderr = run("generate", *arguments)
    assert_refused((code, stdout, stderr.lower()), message, tmp_path, before)


def test_unreadable_features_are_refused(run: Run, captions: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("not numbers")
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "text.safetensors").write_text("not tensors")
    save_file({"a": torch.zeros(1, 6), "b": torch.zeros(1, 6)}, tmp_path / "two.safetensors")
    before = set(tmp_path.rglob("*"))
    for name, message in (
        ("text.npy", "cannot be read"),
        ("pickled.npy", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("two.safetensors", "holds 2 tensors (a, b)"),
    ):
        result = run("generate", "--features", tmp_path / name, "--model", captions, "-o", tmp_path / "out.png")
        assert_refused(result, message, tmp_path, before)


def test_bad_outputs_are_refused(run: Run, captions: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    before = set(tmp_path.rglob("*"))
    for arguments, message in (
        ([], "no output was named"),
        (["--no-decode"], "--no-decode needs"),
        (["--no-decode", "-o", tmp_path / "a.png"], "--no-decode draws no picture"),
        (["-o", tmp_path / "out.jpg"], "must end in .png"),
        (["-o", tmp_path / "folder.png"], "is a folder"),
        (["-o", tmp_path / "file" / "out.png"], "is not a folder"),
        (["-o", tmp_path / "out.png", "--codes", tmp_path / "codes.txt"], "must end in .safetensors"),
    ):
        assert_refused(run("generate", "hills", "--model", captions, *arguments), message, tmp_path, before)


def test_bad_model_folders_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    write_folder(tmp_path / "no-vq", CAPTION, vq=False)
    write_folder(tmp_path / "no-text", CAPTION, text_encoder=False)
    before = set(tmp_path.rglob("*"))
    for name, message in (
        ("absent", "does not exist"),
        ("empty", "holds no config.json"),
        ("gpt2", "model_type 'gpt2'"),
        ("broken", "not valid JSON"),
        ("no-vq", "has no vq/"),
        ("no-text", "has no text_encoder/"),
    ):
        result = run("generate", "hills", "--model", tmp_path / name, "-o", tmp_path / "out.png")
        assert_refused(result, message, tmp_path, before)


def test_without_a_checkout_the_model_must_be_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panoserve.__file__", str(tmp_path / "site-packages" / "panoserve" / "__init__.py"))
    assert_refused(run("generate", "hills", "-o", tmp_path / "out.png"), "--model DIR", tmp_path, set())


def test_a_picture_that_cannot_be_replayed_is_refused(run: Run, captions: Path, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "photo.png")
    before = set(tmp_path.rglob("*"))
    for name, message in (("photo.png", "carries no panoserve."), ("absent.png", "does not exist")):
        assert_refused(run("replay", tmp_path / name, "--model", captions), message, tmp_path, before)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "panoserve: interrupted\n"),
        (RuntimeError("engine died\nwith two lines"), 1, "panoserve: error: RuntimeError: engine died with two lines"),
        (MemoryError(), 1, "panoserve: error: MemoryError"),
    ],
    ids=["interrupt", "runtime error", "no message"],
)
def test_a_failing_engine_leaves_no_file_and_no_traceback(
    error: BaseException, code: int, text: str, run: Run, captions: Path, tmp_path: Path
) -> None:
    FakeEngine.raises = error
    got, stdout, stderr = run("generate", "hills", "--model", captions, "-o", tmp_path / "new" / "out.png")
    assert (got, stdout) == (code, "")
    assert text in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "new").exists()


def test_converting_what_is_no_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c2i_B_256.pt").write_text("not a checkpoint")
    before = set(tmp_path.rglob("*"))
    for name in ("absent.pt", "c2i_B_256.pt"):
        result = run("convert", "llamagen", tmp_path / name, tmp_path / "out", "--grid", 16)
        assert_refused(result, name, tmp_path, before)
