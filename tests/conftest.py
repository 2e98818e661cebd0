"""Shared fixtures: the golden vectors of shared/, and one vLLM engine per model and session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Outputs of the upstream classes on tiny deterministic weights (facts.md 9)."""
    path = REPOSITORY.parent / "shared" / "golden" / "golden.pt"
    if not path.is_file():
        pytest.skip("shared/golden/golden.pt is not beside this checkout")
    return torch.load(path, weights_only=True)
