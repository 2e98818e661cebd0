"""kill -9 at random moments of `panoserve batch`, real engine: every job once, and the pictures of a quiet run, whose
jobs are divided among engines, one for each of two cores.

The size of the experiment comes from the environment, so that the long one of docs/benchmarks.md is the same code:
PANOSERVE_BATCH_JOBS=500 PANOSERVE_BATCH_KILLS=5.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import TINY_CONFIG, WORDS, write_tiny_folder

pytestmark = pytest.mark.engine

JOBS = int(os.environ.get("PANOSERVE_BATCH_JOBS", "24"))
KILLS = int(os.environ.get("PANOSERVE_BATCH_KILLS", "1"))
ENVIRONMENT = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def mixed_jobs(rng: random.Random) -> list[dict[str, Any]]:
    """Squares, wide, tall, both, loops and prompts along the way, sampled and greedy."""
    side = TINY_CONFIG.grid_side * TINY_CONFIG.downsample

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, 4)))

    jobs = []
    for index in range(JOBS):
        width, height = rng.choice([(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
        job: dict[str, Any] = {"id": f"job-{index}", "prompt": text(), "size": f"{width * side}x{height * side}"}
        job |= {"seed": rng.randrange(1000), "temperature": rng.choice([0.0, 1.0]), "stride": rng.choice([4, 6])}
        if (width, height) == (3, 1):
            job["loop"] = rng.random() < 0.5
        if width == 2 and rng.random() < 0.5:
            job["prompts"] = [{"prompt": text(), "left": side}]
        jobs.append(job)
    return jobs


@contextmanager
def started(jobs: Path, model: Path, output: Path, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A batch that goes on in `output`; whatever of it is left at the end is killed."""
    process = start(jobs, model, output, log, *options)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(jobs: Path, model: Path, output: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "panoserve.cli", "batch", str(jobs), "--model", str(model), "-o", str(output)]
    with log.open("ab") as file:
        return subprocess.Popen(
            # A cache for eight lanes: jobs end one after another, not all within the moment before a kill.
            [*command, "--resume", "--dtype", "float32", "--kv-cache-gib", "0.0016", *options],
            stdout=file,
            stderr=file,
            env=ENVIRONMENT,
            start_new_session=True,  # so that the engine's processes can be killed with it
        )


def sidecars(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("job-*.json")}


def kill_and_resume(rng: random.Random, jobs_file: Path, model: Path, killed: Path, log: Path) -> dict[str, int]:
    """Draw the file with KILLS kills on the way; when every job was drawn that was there at a kill."""
    drawn_at: dict[str, int] = {}  # modification time of every sidecar: none may be written twice
    for kill in range(KILLS):
        with started(jobs_file, model, killed, log) as process:
            enough = len(drawn_at) + rng.randint(1, max(1, (JOBS - len(drawn_at)) // (KILLS - kill + 1)))
            while len(sidecars(killed)) < enough:
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            time.sleep(rng.random() * 0.2)
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL  # it was in the middle of its work
        for name in sidecars(killed):
            written = (killed / f"{name}.json").stat().st_mtime_ns
            assert drawn_at.setdefault(name, written) == written, f"{name} was drawn again"
        assert 0 < len(drawn_at) < JOBS
    with started(jobs_file, model, killed, log) as process:
        assert process.wait() == 0, log.read_text()
    return drawn_at


@pytest.mark.timeout(1800)
def test_killed_batches_lose_and_repeat_nothing(tmp_path: Path) -> None:
    rng = random.Random(7)
    jobs_file, log, quiet_log = tmp_path / "jobs.jsonl", tmp_path / "log", tmp_path / "quiet-log"
    jobs = mixed_jobs(rng)
    jobs_file.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    model = write_tiny_folder(tmp_path / "model")
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    engines = f"--engines={min(2, len(os.sched_getaffinity(0)))}"
    # Beside the others: an engine here has one thread.
    with started(jobs_file, model, quiet, quiet_log, engines) as quiet_run:
        drawn_at = kill_and_resume(rng, jobs_file, model, killed, log)
        assert quiet_run.wait() == 0, quiet_log.read_text()

    assert sidecars(killed) == {job["id"] for job in jobs}
    for name, written in drawn_at.items():
        assert (killed / f"{name}.json").stat().st_mtime_ns == written, f"{name} was drawn again"
    for job in jobs:
        name = f"{job['id']}.png"
        assert (killed / name).read_bytes() == (quiet / name).read_bytes(), f"{name} differs: {job}"
    leftovers = {path.name for path in killed.iterdir()} - {path.name for path in quiet.iterdir()}
    assert not leftovers
