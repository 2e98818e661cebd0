"""Several engines for one batch on one machine: its jobs are divided among processes with cores of their own.

While an engine's scheduler runs on one core, its other cores wait, and in a small model that is a third of the time;
two engines with a core each do not wait for each other (figures in docs/benchmarks.md). Every process draws a shard of
the jobs by `panoserve batch` itself, into the same folder, which stays the only record of what is done.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from panoserve.batch import Ledger, Task
from panoserve.errors import InvalidRequestError

POLL = 0.5  # seconds between two looks at the folder
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def cores_of(engines: int) -> list[list[int]]:
    """The cores that this process may use, divided among `engines`. Raises InvalidRequestError if they cannot be."""
    import torch

    if not hasattr(os, "sched_getaffinity"):
        raise InvalidRequestError(f"--engines is {engines}, but only Linux can give each engine cores of its own")
    if torch.cuda.is_available():
        raise InvalidRequestError(
            f"--engines is {engines}, but it divides the cores of a CPU; for several GPUs start a batch for each, with "
            "--shard and CUDA_VISIBLE_DEVICES"
        )
    cores = sorted(os.sched_getaffinity(0))
    if engines > len(cores):
        raise InvalidRequestError(
            f"--engines is {engines}, but this process may use {len(cores)} cores, and each engine needs one of its own"
        )
    return [cores[len(cores) * i // engines : len(cores) * (i + 1) // engines] for i in range(engines)]


def parts_of(shard: tuple[int, int], engines: int) -> list[tuple[int, int]]:
    """Shards that together are `shard` (batch.shard_of), one for each engine."""
    index, count = shard
    return [(index + count * engine, count * engines) for engine in range(engines)]


def draw_apart(
    options: Sequence[str],
    shard: tuple[int, int],
    cores: Sequence[Sequence[int]],
    tasks: Sequence[Task],
    ledger: Ledger,
    advance: Callable[[int], Any],
) -> list[str]:
    """Draw the tasks of `plan_batch`, those of `shard`, in one process for each group of cores.

    options: of `panoserve batch`, without --shard. `advance` is told how many codes more are drawn, picture by picture.
    Returns what processes said last that did not draw all they should. Whatever ends this ends the processes: each
    writes what it has drawn by then.
    """
    settle = partial(_settle, ctypes.CDLL(None), os.getpid())
    left = list(tasks)
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{engine}.log" for engine in range(len(cores))]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for log, own, (index, count) in zip(logs, cores, parts_of(shard, len(cores)), strict=True):
                command = [sys.executable, "-m", "panoserve.cli", "batch", *options, "--shard", f"{index}/{count}"]
                with log.open("wb") as file:
                    processes.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=file,
                            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, see below
                            preexec_fn=partial(settle, own),
                        )
                    )
            running = True
            while running:
                time.sleep(POLL)
                running = any(process.poll() is None for process in processes)
                before, left = left, [task for task in left if not ledger.sidecar(task.job.id).exists()]
                advance(sum(task.codes for task in before) - sum(task.codes for task in left))
        finally:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait()
        for name in (f"results-{index}-of-{count}.jsonl" for index, count in parts_of(shard, len(cores))):
            (ledger.folder / name).unlink(missing_ok=True)  # the whole shard has one of its own
        return [_last_line(log) for log, process in zip(logs, processes, strict=True) if process.returncode]


def _settle(libc: Any, parent: int, cores: Sequence[int]) -> None:
    """In a new process: stay on these cores, and end when the process that began it does."""
    os.sched_setaffinity(0, cores)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it was asked for
        os._exit(1)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
