"""Negative captions through the engine: code for code what the reference draws (float32, greedy)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from golden_models import golden_model
from reference_drawer import draw_greedily

from panoserve import Engine, PanoramaRequest
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.prompts import PromptAt

pytestmark = pytest.mark.engine


def test_negative_captions_of_any_length(caption_engine: Engine, golden: dict[str, Any]) -> None:
    """Shorter and longer than the caption, alone and with prompts along the way, in one batch with none."""
    case = golden["t2i"]
    model = golden_model(case)
    short, long = (f[mask.bool()] for f, mask in zip(case["cond"], case["mask"], strict=True))
    base = {"guidance": 3.0, "temperature": 0.0, "stride": 3, "width": 16 * 10, "height": 64}
    plain = PanoramaRequest(**base, features=short)
    requests = [plain]
    for context in CONTEXTS:
        along = [PromptAt(features=long, left=0.5)]
        requests += [
            replace(plain, negative_features=long, context=context),
            replace(plain, features=long, negative_features=short, context=context, height=16 * 5),
            replace(plain, negative_features=long.flip(0), context=context, prompts=along, blend=0.3),
        ]
    results = caption_engine.generate(requests, decode=False, progress=False)
    wrong = [
        int((result.codes != draw_greedily(model, request)).sum())
        for request, result in zip(requests, results, strict=True)
    ]
    assert wrong == [0] * len(requests)
    assert results[0].codes.tolist() != results[1].codes.tolist(), "the negative caption changes the picture"
