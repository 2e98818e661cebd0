"""Batches divided among engines: shards and cores; tests/test_batch_kills.py draws with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from panoserve import batch_engines
from panoserve.batch import Ledger, shard_of
from panoserve.batch_engines import cores_of, draw_apart, parts_of
from panoserve.cli import main
from panoserve.errors import InvalidRequestError


def test_the_parts_of_a_shard_are_its_jobs() -> None:
    jobs: list[Any] = list(range(50))
    for shard in ((1, 1), (2, 3), (3, 3)):
        parts = [shard_of(jobs, part) for part in parts_of(shard, 4)]
        assert sorted(chain.from_iterable(parts)) == shard_of(jobs, shard)


def test_cores_are_divided_without_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {9, 2, 3, 4, 7})
    assert cores_of(2) == [[2, 3], [4, 7, 9]]
    assert cores_of(5) == [[2], [3], [4], [7], [9]]
    with pytest.raises(InvalidRequestError, match="--engines is 6, but this process may use 5 cores"):
        cores_of(6)


def test_gpus_are_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(InvalidRequestError, match="CUDA_VISIBLE_DEVICES"):
        cores_of(1)


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_a_number_of_engines_is_asked_for(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "jobs.jsonl", "-o", "out", f"--engines={given}"])
    assert "expected a whole number from 1 on" in capsys.readouterr().err


def test_what_an_engine_said_last_comes_back_and_no_results_of_parts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = min(os.sched_getaffinity(0))
    script = "import os, sys; print(sorted(os.sched_getaffinity(0)), file=sys.stderr); sys.exit(sys.argv[-1] == '2/2')"
    stand_in(script, tmp_path, monkeypatch)
    (tmp_path / "results-1-of-2.jsonl").touch()
    assert draw_apart([], (1, 1), [[core], [core]], [], Ledger(tmp_path), int) == [f"[{core}]"]
    assert not list(tmp_path.glob("results*"))


def test_an_interruption_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[-1].replace('/', '-')).touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path('ended-' + sys.argv[-1].replace('/', '-')).touch()
"""
    stand_in(script, tmp_path, monkeypatch)

    def interrupted(_seconds: float) -> None:
        while not (tmp_path / "1-2").exists() or not (tmp_path / "2-2").exists():
            real_sleep(0.01)
        raise KeyboardInterrupt

    real_sleep = time.sleep
    monkeypatch.setattr(batch_engines.time, "sleep", interrupted)
    # A shell's background job is begun with Ctrl-C ignored, and its children inherit that.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            draw_apart([], (1, 1), [sorted(os.sched_getaffinity(0))] * 2, [], Ledger(tmp_path), int)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (tmp_path / "ended-1-2").exists() and (tmp_path / "ended-2-2").exists()


def stand_in(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a script run in `folder`, in the place of `panoserve batch`."""

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", script, *command[3:]], cwd=folder, **options)

    real = subprocess.Popen
    monkeypatch.setattr(batch_engines.subprocess, "Popen", popen)
