"""The engine process is killed: requests under way and new ones are told, and the server's exit code says so."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from http_server import running_server
from tiny_folder import TINY_CONFIG, write_tiny_folder

pytestmark = pytest.mark.engine

CROP = TINY_CONFIG.grid.crop_pixels


def test_a_killed_engine(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    with running_server(folder, tmp_path / "server.log", "--max-lanes", "8") as server:
        events = server.client.images.generate(
            prompt="a sea", size=f"{300 * CROP}x{CROP}", stream=True, partial_images=1
        )
        body = {"prompt": "a sea", "size": f"{300 * CROP}x{CROP}", "stream": True}
        with server.http() as http, http.stream("POST", "/v1/images/generations", json=body) as response:
            lines = response.iter_lines()
            next(lines)  # it draws
            [engine] = [
                child for child in psutil.Process(server.process.pid).children() if "EngineCore" in child.name()
            ]
            os.kill(engine.pid, signal.SIGKILL)
            [last] = [line for line in lines if line.startswith("data:")]
            assert '"code": "engine_dead"' in last
            with pytest.raises(openai.APIError, match="engine process died"):
                list(events)
            try:  # the server lives a few seconds more, and says so
                assert httpx.get(f"{server.url}/health", timeout=10).status_code == 503
                with pytest.raises(openai.InternalServerError) as caught:
                    server.client.images.generate(prompt="a sea")
                assert caught.value.status_code == 503
            except (httpx.TransportError, openai.APIConnectionError):
                pass
        try:
            code = server.process.wait(60)
        except subprocess.TimeoutExpired:
            pytest.fail("the server lives on without an engine")
    assert code == 1
    assert "panoserve: error: the engine process died" in (tmp_path / "server.log").read_text(errors="replace")
