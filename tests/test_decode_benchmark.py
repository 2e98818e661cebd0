"""The benchmark of the decode: both ways make the same picture, and its table says how long they took."""

from __future__ import annotations

import json

import pytest

from panoserve.benchmarks import decode
from panoserve.errors import InvalidRequestError
from panoserve.kernels.native import Level, level
from panoserve.vq.config import VQConfig

NARROW = VQConfig(16, (1, 1), 1, 16, 32, 4, 4)  # the least that the kernel takes


def test_table_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(decode, "PUBLISHED", {"VQ-16": NARROW})
    monkeypatch.setattr(decode, "PUBLISHED_CROP", 4 * NARROW.downsample)
    assert decode.main(["--tokenizers", "VQ-16", "--sizes", "1,2", "--repeat", "3"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    side = 4 * NARROW.downsample
    assert [timing["pixels"] for timing in result["timings"]] == [f"{side}x{side}", f"{2 * side}x{side}"]
    assert [line.split("|")[1].strip() for line in table[-2:]] == ["VQ-16", "VQ-16"]
    for timing in result["timings"]:
        assert timing["milliseconds"] > 0 and timing["torch_milliseconds"] > 0
        assert timing["difference"] < 1e-4
        assert (timing["difference"] > 0) == (level() >= Level.AVX2)


def test_other_names_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="VQ-17 is no model folder; expected one, or one of VQ-16, VQ-8"):
        decode.main(["--tokenizers", "VQ-17"])
