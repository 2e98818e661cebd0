"""Writing files so that a crash leaves the old version or none, and reporting progress line by line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    os.replace(temporary, path)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """torch.save, whole or not at all; readable again with weights_only=True."""
    write_whole(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, or None if there is none."""
    return torch.load(path, weights_only=True) if path.exists() else None


class Progress:
    """Appends one JSON line a report to `path` and prints it: step, values, steps a second since the last report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last: tuple[int, float] | None = None

    def report(self, step: int, **values: float) -> None:
        now = time.monotonic()
        if self.last is not None and step > self.last[0]:
            values["seconds_a_step"] = (now - self.last[1]) / (step - self.last[0])
        self.last = (step, now)
        line = json.dumps({"step": step, **{name: round(float(value), 5) for name, value in values.items()}})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
