"""Load on a `panoserve serve`: codes per second, waiting times, who is turned away, memory; and the same without HTTP.

    python -m panoserve.benchmarks.http_load --clients 1,4,16,64 --soak 1000

Closed loop: that many clients, each sending its next request when it has its picture. Open loop: requests arrive at
`open-factor` times the rate that the best closed loop reached, whether or not earlier ones are done, as strangers do;
the queue then fills and the server answers 429, which is counted and not tried again. Soak: many small pictures for 16
clients, and the server's memory as they go. Every request is a stream, so that the first row can be timed. The server
is the benchmark's own, on a port of its own; after it has stopped, the same pictures are drawn as a batch and as codes
alone (benchmarks/batch.py). The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

from panoserve.benchmarks.batch import in_child
from panoserve.benchmarks.machine import describe, load_average
from panoserve.benchmarks.own_server import OwnServer, own_server
from panoserve.benchmarks.results import Result, append_result, markdown, measured_on

PROMPT = "a red sunset over the sea, with clouds"
TURNED_AWAY = 429
SOAK_STEP = 50  # pictures from one look at the server's memory to the next


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
    parts = [f"{head}\n{measured_on(result)}", markdown(header, rows)]
    if offline := result.get("offline"):
        reached = {case["clients"]: case["codes_per_second"] for case in result["cases"]}.get(16)
        ways = {f"as a batch of {offline['jobs']} jobs": offline["batch"], "codes alone": offline["codes"]}
        parts.append(
            "The same pictures without a server, in the same run: "
            + ", ".join(f"{way} {speed} codes/s" for way, speed in ways.items())
            + "."
            + (
                f" 16 clients had {' and '.join(f'{reached / s:.0%}' for s in ways.values())} of that."
                if reached
                else ""
            )
        )
    if memory := result.get("memory"):
        series = ", ".join(f"{held:,.0f}" for _, held in memory)
        parts.append(
            f"Memory of the server and its engine while {memory[-1][0]:,} pictures of one crop were drawn for 16 "
            f"clients (MiB, at the beginning and after every {SOAK_STEP}): {series}."
        )
    return "\n\n".join(parts)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def put_load(server: OwnServer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every load in turn; the result as far as the server is concerned."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=arguments.timeout, limits=limits) as client:
        options = (await client.get("/v1/images/options")).raise_for_status().json()
        size = options["size"]["default"] if arguments.size == "auto" else arguments.size
        body = {"prompt": PROMPT, "size": size, "stream": True}
        progress("first picture ...")
        await ask(client, body)  # the first one sets up what the others find
        loads: list[Load] = []
        for clients in arguments.clients:
            progress(f"{clients} clients ...")
            requests = max(arguments.requests, arguments.rounds * clients)
            loads.append(await closed_loop(lambda: ask(client, body), clients, requests))
            progress(f"{loads[-1].summary()}")
        best = max(len(load.drawn) / load.seconds for load in loads)
        if arguments.open_factor and best:
            rate = arguments.open_factor * best
            progress(f"open loop at {rate:.2f} requests/s ...")
            loads.append(await open_loop(lambda: ask(client, body), rate, arguments.open_requests))
            progress(f"{loads[-1].summary()}")
        memory: list[tuple[int, float]] = []
        if arguments.soak:
            side = options["size"]["crop"]
            memory = await soak(client, server, {**body, "size": f"{side}x{side}"}, arguments.soak)
    errors = sorted({answer.error for load in loads for answer in load.answers if answer.error})
    return {
        "workload": {"model": options["model"], "size": size, "requests": arguments.requests},
        "cases": [load.summary() for load in loads],
        "memory": memory,
        "errors": errors[:10],
        "answers": [[asdict(answer) for answer in load.answers] for load in loads],
    }


async def soak(
    client: httpx.AsyncClient, server: OwnServer, body: dict[str, Any], requests: int
) -> list[tuple[int, float]]:
    """Memory of the server in MiB after so many answers. Raises RuntimeError at the first that is no picture."""
    memory: list[tuple[int, float]] = [(0, server.resident_mib())]
    answered = 0

    async def send() -> Answer:
        nonlocal answered
        answer = await ask(client, body)
        if not answer.codes:
            raise RuntimeError(f"request {answered + 1} of the soak failed: {answer.error}")
        answered += 1
        if answered % SOAK_STEP == 0:
            memory.append((answered, server.resident_mib()))
            progress(f"{answered} pictures, {memory[-1][1]:.0f} MiB")
        return answer

    await closed_loop(send, 16, requests)
    return memory


def measure(arguments: argparse.Namespace) -> Result:
    """Server, then batch; the whole result as one JSON-ready object."""
    flags = () if arguments.queue_codes is None else ("--max-queue-codes", str(arguments.queue_codes))
    with (
        tempfile.TemporaryDirectory() as folder,
        own_server(arguments.model, Path(folder) / "log", *flags) as server,
    ):
        found = asyncio.run(put_load(server, arguments))
    found["load"] = load_average()
    offline = None
    if arguments.offline_jobs:
        progress("the same pictures without a server ...")
        alone = in_child(arguments.model, arguments.offline_jobs, found["workload"]["size"])
        offline = {"codes": alone["raw"][0], "batch": alone["batch"][0], "jobs": arguments.offline_jobs}
    return {
        "benchmark": "http_load",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        **found,
        "offline": offline,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a panoserve server under load.")
    parser.add_argument("--model", type=Path, default=Path("assets/pano-mini"), metavar="DIR")
    parser.add_argument(
        "--clients",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[1, 4, 16, 64],
        metavar="N,...",
    )
    parser.add_argument("--requests", type=int, default=16, metavar="N", help="of every closed loop, at least")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="requests a client sends, at least")
    parser.add_argument("--open-factor", type=float, default=1.5, metavar="F", help="0 leaves the open loop out")
    parser.add_argument("--open-requests", type=int, default=64, metavar="N", help="of the open loop")
    parser.add_argument("--queue-codes", type=int, metavar="N", help="the server's --max-queue-codes")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="pictures of one crop for 16 clients")
    parser.add_argument("--offline-jobs", type=int, default=32, metavar="N", help="0 leaves the comparison out")
    parser.add_argument("--size", default="auto", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="of one request, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the result to this JSON Lines file")
    arguments = parser.parse_args(argv)
    result = measure(arguments)
    if arguments.json is not None:
        append_result(arguments.json, result)
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
