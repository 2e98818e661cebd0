"""Prompts along the panorama through the engine: code for code what the reference draws (float32, greedy)."""

from __future__ import annotations

from typing import Any

import pytest
from golden_models import golden_model
from reference_drawer import draw_greedily

from panoserve import Engine, PanoramaRequest
from panoserve.errors import InvalidRequestError
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.prompts import PromptAt

pytestmark = pytest.mark.engine


def test_captions_of_different_lengths_along_the_way(caption_engine: Engine, golden: dict[str, Any]) -> None:
    """5 and 17 rows, sharp and blended, in both contexts and directions, in one batch."""
    case = golden["t2i"]
    model = golden_model(case)
    short, long = (f[mask.bool()] for f, mask in zip(case["cond"], case["mask"], strict=True))
    base = {"features": short, "guidance": 3.0, "temperature": 0.0, "stride": 3}
    requests = []
    for context in CONTEXTS:
        at = [PromptAt(features=long, left=0.4, right=0.8)]
        requests += [
            PanoramaRequest(**base, width=16 * 16, height=64, prompts=at, context=context),
            PanoramaRequest(**base, width=16 * 10, height=16 * 7, prompts=at, context=context, loop=True, blend=0.2),
        ]
    results = caption_engine.generate(requests, decode=False, progress=False)
    wrong = [
        int((result.codes != draw_greedily(model, request)).sum())
        for request, result in zip(requests, results, strict=True)
    ]
    assert wrong == [0] * len(requests)
    plain = PanoramaRequest(**base, width=16 * 16, height=64)
    assert draw_greedily(model, plain).tolist() != results[0].codes.tolist(), "the second prompt changes the picture"
    many = [PromptAt(features=long, left=left) for left in range(0, 256, 16)]
    with pytest.raises(InvalidRequestError, match="use fewer or shorter prompts"):
        caption_engine.generate([PanoramaRequest(**base, width=16 * 64, height=64, prompts=many, blend=0.9)])
