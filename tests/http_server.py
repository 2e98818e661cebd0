"""The real server, as a user starts it, in a process of its own: `panoserve serve` on a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from panoserve.benchmarks.own_server import own_server


@dataclass
class Server:
    """A running server: where it is, its process, its log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @cached_property
    def client(self) -> OpenAI:
        """The official client, closed with the server."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=120)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, or with `name{label="x"}` the one that is named."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        starts = (f"{name} ",) if "{" in name else (f"{name} ", f"{name}{{")
        values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(starts)]
        assert values, f"no metric {name}"
        return sum(values)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Our own log lines of one kind."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                values = json.loads(line)
                if values["event"] == event:
                    found.append(values)
        return found


@contextmanager
def running_server(model: Path, log: Path, *flags: str) -> Iterator[Server]:
    """Start a server, wait until it is healthy, stop it with SIGTERM."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}  # a tiny model spends more on waking threads
    with own_server(model, log, *flags, environment=environment) as own:
        server = Server(own.url, own.process, log)
        try:
            yield server
        finally:
            server.client.close()
