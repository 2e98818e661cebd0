"""Ctrl-C, as a user types it, while the real engine draws an endless panorama."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_folder import TINY_CONFIG, write_tiny_folder

from panoserve.endless_folder import read_state

PATIENCE = 500  # seconds until the first tile, on a machine that others use


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """Children start with Ctrl-C in force; a shell's background job, such as a test run, has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.engine
@pytest.mark.usefixtures("heard_interrupts")
def test_ctrl_c_ends_the_command_and_leaves_the_folder_usable(tmp_path: Path) -> None:
    out, crop = tmp_path / "out", TINY_CONFIG.grid.crop_pixels
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    command = [
        sys.executable, "-m", "panoserve.cli", "endless", "a red sky over the sea", "--crops", "2", "--seed", "7",
        "--model", str(write_tiny_folder(tmp_path / "model")), "--dtype", "float32", "--kv-cache-gib", "0.25", "--json",
        "-o", str(out),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "OMP_NUM_THREADS": "1"}
    ) as process:
        try:
            give_up = time.monotonic() + PATIENCE
            while not (out / "endless.json").exists() or not read_state(out).tiles:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < give_up, "no tile was written"
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    facts = json.loads(stdout)
    tiles = [path for path in sorted(out.iterdir()) if path.name.startswith("tile-")]
    assert facts["interrupted"] and facts["tiles"] == len(tiles) >= 1
    for path in tiles:
        with Image.open(path) as tile:
            assert tile.size == (2 * crop, crop)
    with Image.open(out / "preview.png") as preview:
        assert preview.size == (2 * crop * len(tiles), crop) == (facts["width"], facts["height"])
    state = read_state(out)
    assert 1 <= state.tiles <= len(tiles)
    assert state.record.prompt == "a red sky over the sea" and state.codes.shape[0] == TINY_CONFIG.grid_side
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "half-written files"
