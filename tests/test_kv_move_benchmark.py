"""The benchmark of the KV move: its workload is the wavefront's, and its table says what was moved."""

from __future__ import annotations

import json

import pytest

from panoserve.benchmarks import kv_move
from panoserve.configs.model import ModelConfig


def test_overlap_of_every_lane_moves_left_by_the_stride() -> None:
    move = kv_move.overlap_move(num_blocks=16, lanes=2, run=7, stride=24)
    assert move.source.tolist() == [*range(25, 32), *range(128 + 25, 128 + 32)]
    assert move.destination.tolist() == [*range(257, 264), *range(385, 392)]
    assert set(move.columns.tolist()) == {-24}
    assert set(move.rows.tolist()) == {0}


def test_table_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ModelConfig(11, 64, 2, 1, 64, 8, 16, "class", num_classes=3)
    monkeypatch.setattr(ModelConfig, "preset", lambda size, **values: tiny)
    monkeypatch.setattr(kv_move, "CACHE_BYTES", 2**20)
    assert kv_move.main(["--lanes", "1,3", "--grid", "8", "--stride", "6", "--dtype", "float32"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert [timing["slots"] for timing in result["timings"]] == [1, 3]
    assert [line.split("|")[1].strip() for line in table[-2:]] == ["vec", "vec"]
    first = result["timings"][0]
    moved = 2 * 1 * 2 * 2 * 2 * 64 * 4  # read and written, one slot, two layers, two streams, key and value
    assert first["gb_per_second"] == pytest.approx(moved / first["milliseconds"] / 1e6)
