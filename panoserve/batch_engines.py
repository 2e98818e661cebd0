"""Several engines for one batch on one machine: its jobs are divided among processes with cores of their own.

While an engine's scheduler runs on one core, its other cores wait; two engines with a core each do not wait for each
other (figures in docs/benchmarks.md). Every process draws a shard of the jobs by `panoserve batch` itself, into the
same folder, which stays the only record of what is done.
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
LAST_WRITES = 120  # seconds that an interrupted process has for the pictures that it has drawn
TOPOLOGY = Path("/sys/devices/system/cpu")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def cores_of(engines: int) -> list[list[int]]:
    """Hardware threads for each of `engines`, of cores of its own. Raises InvalidRequestError if that cannot be."""
    import torch

    if not hasattr(os, "sched_getaffinity"):
        raise InvalidRequestError(f"--engines is {engines}, but only Linux can give each engine cores of its own")
    if torch.cuda.is_available():
        raise InvalidRequestError(
            f"--engines is {engines}, but it divides the cores of a CPU; for several GPUs start a batch for each, with "
            "--shard and CUDA_VISIBLE_DEVICES"
        )
    cores = _cores()
    if engines > len(cores):
        raise InvalidRequestError(
            f"--engines is {engines}, but this process may use {len(cores)} cores, and each engine needs one of its own"
        )
    shares = (cores[len(cores) * i // engines : len(cores) * (i + 1) // engines] for i in range(engines))
    return [[thread for core in share for thread in core] for share in shares]


def _cores() -> list[list[int]]:
    """The hardware threads that this process may use, core by core; those of a socket follow one another."""
    cores: dict[tuple[int, int], list[int]] = {}
    for thread in sorted(os.sched_getaffinity(0)):
        folder = TOPOLOGY / f"cpu{thread}" / "topology"
        try:
            socket, core = (int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
        except (OSError, ValueError):  # not told, as in some containers
            socket, core = -1, thread
        cores.setdefault((socket, core), []).append(thread)
    return [cores[place] for place in sorted(cores)]


def parts_of(shard: tuple[int, int], engines: int) -> list[tuple[int, int]]:
    """Shards that together are `shard` (batch.shard_of), one for each engine."""
    index, count = shard
    return [(index + count * engine, count * engines) for engine in range(engines)]


def draw_apart(
    options: Sequence[str],
    verbose: bool,
    shard: tuple[int, int],
    cores: Sequence[Sequence[int]],
    tasks: Sequence[Task],
    ledger: Ledger,
    advance: Callable[[int], Any],
) -> list[str]:
    """Draw the tasks of `plan_batch`, those of `shard`, in one process for each group of cores.

    options: of `panoserve batch`, without --shard and --verbose, the file of jobs last. verbose: show all that they
    say. `advance` is told how many codes more are drawn, picture by picture. Returns what processes said last that left
    a job undone. Whatever ends this process interrupts them, so that they write what they have drawn by then.
    """
    settle = partial(_settle, ctypes.CDLL(None), os.getpid())
    for task in tasks:
        ledger.sidecar(task.job.id).unlink(missing_ok=True)  # of a picture that is gone; from now on it means: done
    left = list(tasks)
    parts = parts_of(shard, len(cores))
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{engine}.log" for engine in range(len(cores))]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for log, own, (index, count) in zip(logs, cores, parts, strict=True):
                # -P: as the console script, which does not look for modules in the current folder.
                command = [sys.executable, "-P", "-m", "panoserve.cli", "batch", f"--shard={index}/{count}"]
                command += ["--verbose", *options] if verbose else options
                with log.open("wb") as file:
                    processes.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=None if verbose else file,
                            env=os.environ if verbose else {**os.environ, "TQDM_DISABLE": "1"},
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
            _stop(processes)
            for index, count in parts:  # the whole shard has one of its own
                (ledger.folder / f"results-{index}-of-{count}.jsonl").unlink(missing_ok=True)
        if all(ledger.failure(task.job.id).exists() for task in left):
            return []
        return [_last_words(log, process.returncode) for log, process in zip(logs, processes, strict=True)]


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt those that still run, and wait for them."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(LAST_WRITES)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _settle(libc: Any, parent: int, cores: Sequence[int]) -> None:
    """In a new process: stay on these cores, and be interrupted when the process that began it ends."""
    os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job is begun with Ctrl-C ignored
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:  # it ended before it was asked for
        os._exit(1)


def _last_words(log: Path, code: int) -> str:
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), f"it ended with {code}")
