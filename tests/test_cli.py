"""The command line around the engine: what it asks for and what it writes. How it says no is test_cli_refusals.py's.

The engine is a fake (tests/fake_drawing.py); requests, model folders and files are real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_drawing import CAPTION, CLASS, FakeEngine, Run, write_folder
from PIL import Image
from safetensors.torch import load_file, save_file

from panoserve.cli_record import read_record


def test_generate_writes_one_picture_with_its_record(run: Run, captions: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.png"
    code, stdout, stderr = run("generate", "a red sunset", "--model", captions, "--seed", 5, "-o", out)
    assert code == 0, stderr
    assert stdout == f"{out}: 192 x 32 pixels, seed 5, 96 codes in 7 steps, 0.5 s\n"
    assert "noise" in stderr  # what libraries print is not lost, and not on stdout
    assert FakeEngine.started[0]["dtype"] == "bfloat16"
    assert FakeEngine.started[0]["context"] == "reuse"
    record = read_record(out)
    assert (record.prompt, record.width, record.height, record.stride) == ("a red sunset", 192, 32, 3)
    assert (record.seed, record.guidance, record.model, record.dtype) == (5, 4.0, "captions", "bfloat16")
    with Image.open(out) as picture:
        assert picture.size == (192, 32)


def test_json_is_one_object_and_nothing_else(run: Run, classes: Path, tmp_path: Path) -> None:
    out, codes = tmp_path / "out.png", tmp_path / "codes.safetensors"
    code, stdout, _ = run(
        "generate", "--label", 3, "--model", classes, "--size", "48x40", "--stride", 2, "--seed", 9, "--json",
        "--row-stride", 1, "--loop",
        "--guidance", 1.5, "--guidance-interval", 4, "--temperature", 0, "--top-k", 7, "--top-p", 0.5,
        "--context", "recompute", "--dtype", "float32", "-o", out, "--codes", codes, "--kv-cache-gib", 0.5,
    )  # fmt: skip
    assert code == 0
    assert FakeEngine.started[0]["kv_cache_gib"] == 0.5
    answer = json.loads(stdout)
    assert answer["path"] == str(out)
    assert answer["codes_path"] == str(codes)
    assert answer["codes"] == [[9] * 6] * 5
    counters = {"steps": 7, "drawn": 30, "forward_tokens": 9, "copied_slots": 4, "lanes": 2}
    assert answer["stats"] == {**counters, "seconds": 0.5}
    assert answer["truncated"] is False
    expected = {
        "label": 3, "prompt": None, "width": 48, "height": 40, "stride": 2, "seed": 9, "guidance": 1.5,
        "guidance_interval": 4, "temperature": 0.0, "top_k": 7, "top_p": 0.5, "context": "recompute",
        "dtype": "float32", "row_stride": 1, "loop": True,
    }  # fmt: skip
    assert {name: answer["request"][name] for name in expected} == expected
    assert answer["request"] == asdict(read_record(out))
    assert load_file(codes)["codes"].tolist() == answer["codes"]


def test_prompts_along_the_picture(run: Run, captions: Path, classes: Path, tmp_path: Path) -> None:
    """Inline, from a file, and with classes; replay draws the same again."""
    out, file = tmp_path / "out.png", tmp_path / "prompts.yaml"
    inline = ("--at", "0.0", "a beach", "--at", "96", "a city", "--blend", "0.25", "--seed", 1)
    assert run("generate", "--model", captions, "-o", out, *inline)[0] == 0
    assert run("replay", out, "--model", captions)[0] == 0
    file.write_text("[{prompt: a beach, left: 0.0}, {prompt: a city, left: 96}]")
    again = ("--prompts", file, "--blend", "0.25", "--seed", 1)
    assert run("generate", "--model", captions, "-o", out, *again)[0] == 0
    requests = [started["requests"][0] for started in FakeEngine.started]
    places = [[asdict(prompt) for prompt in request.prompts] for request in requests]
    assert places[0] == places[1] == places[2]
    assert [(request.prompt, request.blend) for request in requests] == [("a beach", 0.25)] * 3
    assert [(entry["prompt"], entry["left"]) for entry in places[0]] == [("a beach", 0.0), ("a city", 96)]
    assert run("generate", "--label", 2, "--at", "0.5", 7, "--model", classes, "-o", out)[0] == 0
    [station] = FakeEngine.started[-1]["requests"][0].prompts
    assert (station.label, station.left) == (7, 0.5)


def test_a_negative_prompt_is_recorded(run: Run, captions: Path, classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert run("generate", "hills", "--negative", "rain", "--model", captions, "-o", out)[0] == 0
    assert read_record(out).negative_prompt == "rain"
    assert run("replay", out, "--model", captions)[0] == 0
    assert [started["requests"][0].negative_prompt for started in FakeEngine.started] == ["rain", "rain"]
    code, _, stderr = run("generate", "--label", 1, "--negative", "rain", "--model", classes, "-o", out)
    assert code == 2
    assert "got negative_prompt, but this model is class-conditional; leave it out" in stderr


def test_codes_alone_need_no_picture(run: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "codes-only", CLASS, vq=False)
    code, stdout, _ = run("generate", "--label", 3, "--model", folder, "--no-decode", "--json", "--seed", 1)
    assert code == 0
    assert json.loads(stdout)["path"] is None


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_features_are_read_and_recorded(run: Run, captions: Path, tmp_path: Path, suffix: str) -> None:
    values = torch.arange(12, dtype=torch.float32).reshape(2, 6)
    path = tmp_path / f"features{suffix}"
    if suffix == ".npy":
        np.save(path, values.numpy())
    else:
        save_file({"features": values}, path)
    code, _, stderr = run("generate", "--features", path, "--model", captions, "-o", tmp_path / "a.png", "--seed", 3)
    assert code == 0, stderr
    assert torch.equal(FakeEngine.started[0]["requests"][0].features, values)
    assert run("replay", tmp_path / "a.png", "--model", captions)[0] == 0
    assert torch.equal(FakeEngine.started[1]["requests"][0].features, values)
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    code, _, stderr = run("replay", tmp_path / "a.png", "--model", captions)
    assert code == 2
    assert "is not the one" in stderr


def test_replay_asks_for_the_same_thing(run: Run, captions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    settings = (
        "--size",
        "64x48",
        "--stride",
        1,
        "--row-stride",
        2,
        "--loop",
        "--context",
        "recompute",
        "--dtype",
        "float32",
        "--top-k",
        9,
    )
    assert (
        run("generate", "hills", "--model", captions, "-o", out, *settings)[0] == 0
    )  # the seed is drawn, and recorded
    code, stdout, stderr = run("replay", out, "--model", captions)
    assert code == 0, stderr
    again = tmp_path / "out-again.png"
    assert stdout.startswith(str(again))
    assert again.read_bytes() == out.read_bytes()
    first, second = FakeEngine.started
    assert [asdict(request) for request in first.pop("requests")] == [asdict(r) for r in second.pop("requests")]
    assert first == second


def test_replay_with_another_model(run: Run, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was named is used with a warning; the default model is not taken for another one."""
    out = tmp_path / "out.png"
    assert run("generate", "hills", "--model", captions, "-o", out)[0] == 0
    save_file({"weight": torch.ones(3, 4)}, captions / "model.safetensors")
    code, _, stderr = run("replay", out, "--model", captions)
    assert code == 0
    assert "warning: the picture was drawn with model captions" in stderr
    monkeypatch.setattr("panoserve.cli_model.default_model", lambda: captions)
    code, _, stderr = run("replay", out)
    assert code == 2
    assert "name the right folder with --model DIR" in stderr


def test_a_cut_prompt_is_said_aloud(run: Run, captions: Path, tmp_path: Path) -> None:
    FakeEngine.truncates = True
    code, _, stderr = run("generate", "many words " * 50, "--model", captions, "-o", tmp_path / "out.png")
    assert code == 0
    assert "panoserve: warning: the prompt is longer than the 5 tokens that the model takes" in stderr


def test_verbose_shows_the_traceback(run: Run, captions: Path, tmp_path: Path) -> None:
    FakeEngine.raises = RuntimeError("engine died")
    code, _, stderr = run("generate", "hills", "--model", captions, "-o", tmp_path / "out.png", "-v")
    assert code == 1
    assert "Traceback" in stderr
    assert stderr.splitlines()[-1] == "panoserve: error: RuntimeError: engine died"


@pytest.mark.parametrize("config", [CLASS, CAPTION], ids=["class", "caption"])
def test_info(config: Any, run: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", config, vq=False, text_encoder=config is CAPTION)
    code, stdout, _ = run("info", "--model", folder, "--json")
    assert code == 0
    answer = json.loads(stdout)
    expected = {
        "model": "model",
        "kind": f"{config.condition}-conditional",
        "parameters": 12,
        "grid": 4,
        "downsample": 8,
        "crop_pixels": 32,
        "default_stride": 3,
        "guidance": 4.0,
        "vq": False,
        "text_encoder": config is CAPTION,
    }
    assert {name: answer[name] for name in expected} == expected
    assert ("num_classes" in answer) == (config is CLASS)
    code, stdout, _ = run("info", "--model", folder)
    assert code == 0
    assert "one crop    32 x 32 pixels; a picture's sides are multiples of 8\n" in stdout
    assert "no vq/ in the folder" in stdout


def test_convert_passes_everything_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("panoserve.convert.convert_llamagen", lambda *args, **kwargs: calls.append((args, kwargs)))
    flags = ("--vq", "vq.pt", "--text-encoder", "t5", "--grid", 16, "--heads", 2, "--downsample", 8)
    more = ("--no-null-class", "--dtype", "float16", "--overwrite")
    code, stdout, _ = run("convert", "llamagen", "c2i_B_256.pt", tmp_path, *flags, *more)
    assert code == 0
    expected = {
        "vq": Path("vq.pt"), "text_encoder": Path("t5"), "grid": 16, "heads": 2, "downsample": 8,
        "null_class": False, "dtype": "float16", "overwrite": True,
    }  # fmt: skip
    assert calls == [((Path("c2i_B_256.pt"), tmp_path), expected)]
    assert stdout.startswith(f"wrote {tmp_path}")


def test_help_and_info_import_neither_torch_nor_vllm(tmp_path: Path) -> None:
    """They answer at once: a child process is asked what it imported."""
    folder = write_folder(tmp_path / "model", CLASS)
    script = (
        "import sys; from panoserve.cli import main, build_parser; build_parser().format_help(); "
        f"code = main(['info', '--model', {str(folder)!r}]); "
        "heavy = {'torch', 'vllm', 'transformers'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CLASS)
    command = [sys.executable, "-m", "panoserve.cli", "info", "--model", str(folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(60) == 1


def test_version(run: Run) -> None:
    from panoserve import __version__

    assert run("--version")[1] == f"panoserve {__version__}\n"
