"""Shared fixtures: the golden vectors of shared/, and one vLLM engine per model and session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

# The same examples at every run, so that a change is blamed for what it broke. PANOSERVE_FUZZ_EXAMPLES=N searches
# further: other examples each time, N for each fuzz test.
hypothesis.settings.register_profile("panoserve", derandomize="PANOSERVE_FUZZ_EXAMPLES" not in os.environ)
hypothesis.settings.load_profile("panoserve")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process: faster starts, inspectable schedulers
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Outputs of the upstream classes on tiny deterministic weights (facts.md 9)."""
    path = REPOSITORY.parent / "shared" / "golden" / "golden.pt"
    if not path.is_file():
        pytest.skip("shared/golden/golden.pt is not beside this checkout")
    return torch.load(path, weights_only=True)


def start_engine(case: dict[str, Any], folder: Path, **options: Any) -> Any:
    """A float32 engine with a golden case's weights, converted as a user would convert a checkpoint."""
    from panoserve import Engine
    from panoserve.convert import convert_llamagen

    torch.save({"model": case["sd"]}, folder / "golden.pt")
    convert_llamagen(folder / "golden.pt", folder / "model", grid=case["cfg"]["g"], heads=case["cfg"]["n_head"])
    return Engine(folder / "model", dtype="float32", **options)


@pytest.fixture(scope="session")
def class_engine(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with start_engine(golden["c2i"], tmp_path_factory.mktemp("c2i"), max_lanes=16) as engine:
        yield engine


@pytest.fixture(scope="session")
def caption_engine(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with start_engine(golden["t2i"], tmp_path_factory.mktemp("t2i"), max_lanes=16) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One `panoserve serve` for all HTTP tests, with a queue that two long panoramas fill."""
    from http_server import running_server
    from tiny_folder import write_tiny_folder

    folder = tmp_path_factory.mktemp("server")
    flags = ("--max-lanes", "16", "--max-queue-codes", "16384", "--dtype", "float32")
    with running_server(write_tiny_folder(folder / "tiny"), folder / "server.log", *flags) as running:
        yield running


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command with FakeEngine as its engine; returns (exit code, stdout, stderr)."""
    from fake_drawing import FakeEngine, run_command

    import panoserve

    monkeypatch.setitem(vars(panoserve), "Engine", FakeEngine)  # the real one would import vLLM
    monkeypatch.setattr(FakeEngine, "started", [])
    monkeypatch.setattr(FakeEngine, "raises", None)
    monkeypatch.setattr(FakeEngine, "truncates", False)

    def run(*arguments: object) -> tuple[int, str, str]:
        return run_command(capfd, *arguments)

    return run


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A model folder of a caption model for FakeEngine."""
    from fake_drawing import CAPTION, write_folder

    return write_folder(tmp_path / "captions", CAPTION)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A model folder of a class model for FakeEngine."""
    from fake_drawing import CLASS, write_folder

    return write_folder(tmp_path / "classes", CLASS)
