"""A `panoserve serve` of a benchmark's (or a test's) own: started, watched, stopped."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 540  # below the time limit of a test


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A running server and its process."""

    url: str
    process: subprocess.Popen[bytes]

    def resident_mib(self) -> float:
        """Memory that the server and the engine's process hold now, in MiB (pages that they share count twice)."""
        import psutil

        first = psutil.Process(self.process.pid)
        held = 0
        for process in (first, *first.children(recursive=True)):
            try:
                held += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # ended meanwhile
        return round(held / 2**20, 1)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def own_server(
    model: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[OwnServer]:
    """Start a server of `model` on a free port, wait until it is healthy, and stop it with SIGTERM at the end.

    flags: of `panoserve serve`, besides model and port; environment: the server's, in place of this process's. Raises
    RuntimeError, with the end of its log, if it does not start, and TimeoutExpired if it does not stop.
    """
    port = free_port()
    command = [sys.executable, "-m", "panoserve.cli", "serve", "--model", str(model), "--port", str(port), *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    server = OwnServer(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(server):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-6000:]}")
            time.sleep(1)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _healthy(server: OwnServer) -> bool:
    try:
        return httpx.get(f"{server.url}/health", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False
