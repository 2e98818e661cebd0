"""The load test's own arithmetic and loops, against a server that is a function."""

from __future__ import annotations

import asyncio

import pytest

from panoserve.benchmarks.http_load import Answer, Load, closed_loop, open_loop, percentile, table


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


def test_a_load_without_pictures_has_figures_all_the_same() -> None:
    assert Load("closed", 1, 0, 1.0, ()).summary()["codes_per_second"] == pytest.approx(0)
