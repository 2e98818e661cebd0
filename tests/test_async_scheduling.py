"""The redirection scheduler under async scheduling: the next step is scheduled before this one's codes are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine
TESTS = Path(__file__).resolve().parent


def test_panoramas_equal_the_reference_with_async_scheduling(golden: dict[str, Any], tmp_path: Path) -> None:
    vectors = TESTS.parent.parent / "shared" / "golden" / "golden.pt"
    run = subprocess.run(
        [sys.executable, str(TESTS / "async_cpu.py"), str(vectors), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {
        "mismatches": {"reuse": [0, 0, 0], "recompute": [0, 0, 0]},
        "left": 0,
    }
