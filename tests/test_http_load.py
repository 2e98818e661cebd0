"""The load test's own arithmetic and loops, against a server that is a function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from panoserve.benchmarks import http_load
from panoserve.benchmarks.http_load import Answer, Load, closed_loop, open_loop, percentile, table

OFFLINE = {"codes": 40.0, "batch": 25.0, "jobs": 8}


class Watched:
    """A server whose memory is 100 MiB and one more at every look."""

    looks = 0

    def resident_mib(self) -> float:
        self.looks += 1
        return 100.0 + self.looks


def soaked(monkeypatch: pytest.MonkeyPatch, answers: Callable[[int], Answer], requests: int) -> list[tuple[int, float]]:
    sent = 0

    async def ask(client: Any, body: Any) -> Answer:
        nonlocal sent
        sent += 1
        return answers(sent)

    monkeypatch.setattr(http_load, "ask", ask)
    return asyncio.run(http_load.soak(cast(Any, None), cast(Any, Watched()), {}, requests))


def test_a_soak_looks_at_the_memory_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = soaked(monkeypatch, lambda _: Answer(200, 0.1, 0.2, 10), requests=120)
    assert memory == [(0, 101.0), (50, 102.0), (100, 103.0)]


def test_a_soak_ends_at_the_first_answer_without_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="engine is gone"):
        soaked(monkeypatch, lambda n: Answer(503, 0, 0.1, 0, "engine is gone") if n == 7 else Answer(200, 1, 2, 10), 99)


def test_percentiles() -> None:
    assert percentile([], 95) == 0
    assert percentile([2.0], 95) == 2
    assert percentile([float(i) for i in range(101)], 95) == 95


def test_a_closed_loop_never_sends_more_than_its_clients() -> None:
    now = most = sent = 0

    async def send() -> Answer:
        nonlocal now, most, sent
        now, sent = now + 1, sent + 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return Answer(200, 0.5, 1.0, 10)

    load = asyncio.run(closed_loop(send, clients=3, requests=10))
    assert (most, sent, len(load.answers)) == (3, 10, 10)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def scenario() -> Load:
        all_sent = asyncio.Event()
        waiting = 0

        async def send() -> Answer:
            nonlocal waiting
            waiting += 1
            if waiting == 5:
                all_sent.set()
            await all_sent.wait()
            return Answer(200, 0.5, 1.0, 10)

        return await asyncio.wait_for(open_loop(send, rate=1000, requests=5), 30)

    assert len(asyncio.run(scenario()).drawn) == 5


def test_what_is_counted() -> None:
    answers = (
        Answer(200, 1, 2, 100),
        Answer(200, 3, 4, 100),
        Answer(429, 0, 0.1, 0, "full"),
        Answer(500, 0, 1, 0, "no"),
    )
    summary = Load("open", 0, 2.0, 10.0, answers).summary()
    assert (summary["pictures"], summary["turned_away"], summary["errors"]) == (2, 1, 1)
    assert summary["codes_per_second"] == 20
    assert (summary["first_row_p50"], summary["whole_p50"]) == (2, 3)
    machine = dict.fromkeys(("cpu", "cores", "isa", "memory_gib", "torch", "vllm", "commit"), "x")
    result = {
        "machine": machine,
        "date": "today",
        "load": 1,
        "workload": {"model": "m", "size": "1x1"},
        "cases": [summary, Load("closed", 4, 0, 10.0, answers).summary()],
    }
    assert "| 2.00 requests/s | 4 | 2 | 1 | 1 | 20.0 |" in table(result)
    assert "| 4 clients | 4 | 2 | 1 | 1 |" in table(result)
    assert "Memory" not in table(result) and "without a server" not in table(result)
    case = Load("closed", 16, 0, 10.0, answers).summary()
    more = table({**result, "cases": [case], "memory": [[0, 900.4], [50, 901.0]], "offline": OFFLINE})
    assert "as a batch of 8 jobs 25.0 codes/s, codes alone 40.0 codes/s. 16 clients had 80% and 50% of that." in more
    assert "while 50 pictures" in more and ": 900, 901." in more


def test_a_load_without_pictures_has_figures_all_the_same() -> None:
    assert Load("closed", 1, 0, 1.0, ()).summary()["codes_per_second"] == pytest.approx(0)
