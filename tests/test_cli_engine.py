"""The whole way, as a user types it: prompt to picture with the embedded model, and the picture drawn again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from panoserve.cli_model import describe, open_folder


def panoserve(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, without the settings that the tests' engines use."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    command = [sys.executable, "-m", "panoserve.cli", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.engine
def test_a_prompt_becomes_a_picture_that_can_be_drawn_again(tmp_path: Path) -> None:
    model = describe(open_folder(None))
    crop, columns = model["crop_pixels"], 2 * model["grid"]
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    settings = ("--size", f"{2 * crop}x{crop}", "--seed", 7, "--json")
    first = panoserve("generate", "a red sunset over the sea", *settings, "-o", out)
    assert first.returncode == 0, first.stderr
    answer: dict[str, Any] = json.loads(first.stdout)
    assert [len(row) for row in answer["codes"]] == [columns] * model["grid"]
    assert {code for row in answer["codes"] for code in row} <= set(range(model["codebook"]))
    assert answer["stats"]["drawn"] == columns * model["grid"]
    assert answer["stats"]["lanes"] == 1 + -(-(columns - model["grid"]) // model["default_stride"])
    second = panoserve("replay", out, "-o", again, "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["codes"] == answer["codes"]
    with Image.open(out) as one, Image.open(again) as two:
        assert one.size == (2 * crop, crop)
        assert one.tobytes() == two.tobytes()
        assert len(set(one.convert("L").resize((32, 16)).tobytes())) > 16  # a picture, not one colour
