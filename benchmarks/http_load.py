"""Load on a running `panoserve serve`: codes per second, waiting times, and who is turned away.

    python -m panoserve.benchmarks.http_load --clients 1,4,16 --requests 16 --open-factor 1.5

Closed loop: that many clients, each sending its next request when it has its picture. Open loop: requests arrive at
`open-factor` times the rate that the best closed loop reached, whether or not earlier ones are done, as strangers do;
the queue then fills and the server answers 429, which is counted and not tried again. Every request is a stream, so
that the first row can be timed. What is not covered: the engine without HTTP (benchmarks/throughput.py). The last line
of output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

from panoserve.benchmarks.machine import describe, load_average
from panoserve.benchmarks.results import Result, append_result, markdown, measured_on

PROMPT = "a red sunset over the sea, with clouds"
TURNED_AWAY = 429


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it; seconds from sending. `codes` is 0 unless the picture came."""

    status: int
    first_row: float
    whole: float
    codes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of one kind of load."""

    kind: str
    clients: int  # closed loop; 0 for the open one
    rate: float  # requests per second sent, open loop; 0 for the closed one
    seconds: float
    answers: tuple[Answer, ...]

    @property
    def drawn(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.codes]

    def summary(self) -> dict[str, Any]:
        """The figures of one row of the table."""
        drawn = self.drawn
        return {
            "kind": self.kind,
            "clients": self.clients,
            "rate": round(self.rate, 3),
            "seconds": round(self.seconds, 2),
            "requests": len(self.answers),
            "pictures": len(drawn),
            "turned_away": sum(answer.status == TURNED_AWAY for answer in self.answers),
            "errors": sum(bool(answer.error) and answer.status != TURNED_AWAY for answer in self.answers),
            "codes_per_second": round(sum(answer.codes for answer in drawn) / self.seconds, 1),
            "first_row_p50": percentile([answer.first_row for answer in drawn], 50),
            "first_row_p95": percentile([answer.first_row for answer in drawn], 95),
            "whole_p50": percentile([answer.whole for answer in drawn], 50),
            "whole_p95": percentile([answer.whole for answer in drawn], 95),
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile, in seconds; 0 without values, the value itself for one."""
    if len(values) < 2:
        return round(sum(values), 3)
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 3)


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """Send one request and read its stream to the end."""
    begun = perf_counter()
    first_row = 0.0
    try:
        async with client.stream("POST", "/v1/images/generations", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return Answer(response.status_code, 0, perf_counter() - begun, 0, response.text[:200])
            async for line in response.aiter_lines():
                if not first_row and re.match(r": progress ", line):
                    first_row = perf_counter() - begun
                elif line.startswith("data:"):
                    event = json.loads(line.removeprefix("data:"))
                    whole = perf_counter() - begun
                    if "error" in event:
                        return Answer(200, first_row, whole, 0, event["error"]["message"])
                    return Answer(200, first_row, whole, event["usage"]["output_tokens"])
        return Answer(200, first_row, perf_counter() - begun, 0, "the stream ended without a picture")
    except httpx.HTTPError as error:
        return Answer(0, first_row, perf_counter() - begun, 0, repr(error))


async def closed_loop(send: Callable[[], Awaitable[Answer]], clients: int, requests: int) -> Load:
    """`requests` requests in all, at most `clients` at a time."""
    left = requests
    answers: list[Answer] = []

    async def one_client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            answers.append(await send())

    begun = perf_counter()
    await asyncio.gather(*(one_client() for _ in range(min(clients, requests))))
    return Load("closed", clients, 0, perf_counter() - begun, tuple(answers))


async def open_loop(send: Callable[[], Awaitable[Answer]], rate: float, requests: int) -> Load:
    """`requests` requests, `rate` of them a second at even distances."""
    begun = perf_counter()

    async def at(due: float) -> Answer:
        await asyncio.sleep(max(0.0, begun + due - perf_counter()))
        return await send()

    answers = await asyncio.gather(*(at(i / rate) for i in range(requests)))
    return Load("open", 0, rate, perf_counter() - begun, tuple(answers))


def table(result: Result) -> str:
    """The result for people (Markdown)."""
    workload = result["workload"]
    header = ["load", "requests", "pictures", "429", "errors", "codes/s", "first row p50, p95 (s)",
              "picture p50, p95 (s)"]  # fmt: skip
    rows = [
        [
            f"{case['clients']} clients" if case["kind"] == "closed" else f"{case['rate']:.2f} requests/s",
            f"{case['requests']}",
            f"{case['pictures']}",
            f"{case['turned_away']}",
            f"{case['errors']}",
            f"{case['codes_per_second']}",
            f"{case['first_row_p50']}, {case['first_row_p95']}",
            f"{case['whole_p50']}, {case['whole_p95']}",
        ]
        for case in result["cases"]
    ]
    head = f"Workload: model {workload['model']}, size {workload['size']}; load average {result['load']}  "
    return f"{head}\n{measured_on(result)}\n\n{markdown(header, rows)}"


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    body = {"prompt": PROMPT, "size": arguments.size, "stream": True}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=arguments.server, timeout=arguments.timeout, limits=limits) as client:
        options = (await client.get("/v1/images/options")).raise_for_status().json()
        loads: list[Load] = []
        for clients in arguments.clients:
            print(f"{clients} clients ...", file=sys.stderr)
            loads.append(await closed_loop(lambda: ask(client, body), clients, max(arguments.requests, clients)))
        best = max(len(load.drawn) / load.seconds for load in loads)
        if arguments.open_factor and best:
            print(f"open loop at {arguments.open_factor * best:.2f} requests/s ...", file=sys.stderr)
            rate = arguments.open_factor * best
            loads.append(await open_loop(lambda: ask(client, body), rate, arguments.requests))
    size = options["size"]["default"] if arguments.size == "auto" else arguments.size
    errors = sorted({answer.error for load in loads for answer in load.answers if answer.error})
    return {
        "benchmark": "http_load",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "load": load_average(),
        "workload": {"model": options["model"], "size": size, "requests": arguments.requests},
        "cases": [load.summary() for load in loads],
        "errors": errors[:10],
        "answers": [[asdict(answer) for answer in load.answers] for load in loads],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a running panoserve server under load.")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument(
        "--clients", type=lambda text: [int(number) for number in text.split(",")], default=[1, 4, 16], metavar="N,..."
    )
    parser.add_argument("--requests", type=int, default=16, metavar="N", help="of every load (default 16)")
    parser.add_argument("--open-factor", type=float, default=1.5, metavar="F", help="0 leaves the open loop out")
    parser.add_argument("--size", default="auto", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="of one request, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    arguments = parser.parse_args(argv)
    result = asyncio.run(measure(arguments))
    if arguments.json is not None:
        append_result(arguments.json, result)
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
