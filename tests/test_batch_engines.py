"""Batches divided among engines: shards and cores; tests/test_batch_kills.py draws with real ones."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from panoserve import batch_engines
from panoserve.batch import Ledger, Task, shard_of
from panoserve.batch_engines import cores_of, draw_apart, parts_of
from panoserve.cli import main
from panoserve.configs.model import ModelConfig
from panoserve.errors import InvalidRequestError
from panoserve.jobs import Job
from panoserve.serve.request import PanoramaRequest


def test_the_parts_of_a_shard_are_its_jobs() -> None:
    rng = random.Random(0)
    config = ModelConfig.preset("B", grid_side=4, downsample=8, condition="class", num_classes=10)
    jobs = [Job(n, str(n), PanoramaRequest(label=1, width=rng.choice((None, 32, 64, 320))), None) for n in range(50)]
    for shard in ((1, 1), (2, 3), (3, 3)):
        parts = [shard_of(jobs, part, config) for part in parts_of(shard, 4)]
        drawn = sorted(chain.from_iterable(parts), key=lambda job: job.number)
        assert drawn == shard_of(jobs, shard, config)


def test_cores_are_divided_without_a_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {9, 2, 3, 4, 7})
    monkeypatch.setattr(batch_engines, "TOPOLOGY", tmp_path)
    assert cores_of(2) == [[2, 3], [4, 7, 9]]
    assert cores_of(5) == [[2], [3], [4], [7], [9]]
    with pytest.raises(InvalidRequestError, match="--engines is 6, but this process may use 5 cores"):
        cores_of(6)


def test_threads_of_a_core_stay_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two sockets with two cores each, of two threads; a core's second thread has a number in the upper half."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(batch_engines, "TOPOLOGY", tmp_path)
    for thread in range(8):
        folder = tmp_path / f"cpu{thread}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{thread % 2}\n")
        (folder / "core_id").write_text(f"{thread % 4 // 2}\n")
    assert cores_of(2) == [[0, 4, 2, 6], [1, 5, 3, 7]]
    assert cores_of(4) == [[0, 4], [2, 6], [1, 5], [3, 7]]
    with pytest.raises(InvalidRequestError, match="may use 4 cores"):
        cores_of(5)


def test_gpus_are_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(InvalidRequestError, match="CUDA_VISIBLE_DEVICES"):
        cores_of(1)


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_a_number_of_engines_is_asked_for(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "jobs.jsonl", "-o", "out", f"--engines={given}"])
    assert "expected a whole number from 1 on" in capsys.readouterr().err


def task_of(name: str) -> Task:
    return Task(Job(1, name, None, None), None, 10)  # type: ignore[arg-type]


def test_what_engines_said_last_comes_back_if_a_job_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar whose picture has gone does not count as done, and no results of parts stay."""
    core = min(os.sched_getaffinity(0))
    script = """
import os, signal, sys
print(sorted(os.sched_getaffinity(0)), file=sys.stderr)
print(file=sys.stderr)
if '--shard=2/2' in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    stand_in(script, tmp_path, monkeypatch)
    ledger, task, drawn = Ledger(tmp_path), task_of("lost"), list[int]()
    ledger.sidecar("lost").write_text("{}")
    (tmp_path / "results-1-of-2.jsonl").touch()
    said = draw_apart([], False, (1, 1), [[core], [core]], [task], ledger, drawn.append)
    assert said == [f"[{core}]", "it was ended by SIGKILL"] and sum(drawn) == 0
    assert not list(tmp_path.iterdir())
    ledger.failure("lost").write_text("{}")
    assert draw_apart([], False, (1, 1), [[core], [core]], [task], ledger, drawn.append) == []


def test_an_interruption_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[1][-3:].replace('/', '-')).touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path('ended-' + sys.argv[1][-3:].replace('/', '-')).touch()
"""
    stand_in(script, tmp_path, monkeypatch)

    def interrupted(_codes: int) -> None:
        if (tmp_path / "1-2").exists() and (tmp_path / "2-2").exists():
            raise KeyboardInterrupt

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell's background job has it
    try:
        with pytest.raises(KeyboardInterrupt):
            draw_apart([], False, (1, 1), [sorted(os.sched_getaffinity(0))] * 2, [], Ledger(tmp_path), interrupted)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (tmp_path / "ended-1-2").exists() and (tmp_path / "ended-2-2").exists()


def stand_in(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a script run in `folder`, in the place of `panoserve batch`."""

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[1:5] == ["-P", "-m", "panoserve.cli", "batch"]
        return real([sys.executable, "-c", script, *command[5:]], cwd=folder, **options)

    real = subprocess.Popen
    monkeypatch.setattr(batch_engines.subprocess, "Popen", popen)
