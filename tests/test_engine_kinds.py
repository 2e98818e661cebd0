"""Every kind of panorama through the engine: code for code what the reference draws, in the predicted steps.

float32 and greedy; golden weights, grid of side 4. simulate.py draws the oracle crop after crop (reference_drawer.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_models import golden_model
from reference_drawer import draw_greedily

from panoserve import Engine, PanoramaRequest
from panoserve.redirect.layout import plan_of
from panoserve.redirect.plan import CONTEXTS
from panoserve.redirect.simulate import predict

pytestmark = pytest.mark.engine

# rows, columns, stride, row_stride, loop: what a crop shares with its neighbours differs in each.
KINDS = {
    "vertical": (13, 4, 4, 3, False),
    "vertical, half": (9, 4, 3, 2, False),
    "both": (10, 13, 3, 3, False),
    "both, uneven": (9, 8, 1, 2, False),
    "both, no rows shared": (8, 10, 2, 4, False),
    "loop": (4, 15, 3, 3, True),
    "loop of two crops": (4, 6, 2, 2, True),
    "loop, both": (8, 11, 2, 3, True),
}


def requests_of(context: str, **subject: Any) -> list[PanoramaRequest]:
    return [
        PanoramaRequest(
            **subject,
            height=16 * rows,
            width=16 * columns,
            stride=stride,
            row_stride=row_stride,
            loop=loop,
            guidance=2.0,
            temperature=0.0,
            context=context,
        )
        for rows, columns, stride, row_stride, loop in KINDS.values()
    ]


def mismatches(model: Any, requests: list[PanoramaRequest], results: list[Any]) -> dict[str, int]:
    pairs = zip(KINDS, requests, results, strict=True)
    return {kind: int((result.codes != draw_greedily(model, request)).sum()) for kind, request, result in pairs}


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_kind_equals_the_reference(class_engine: Engine, golden: dict[str, Any], context: str) -> None:
    requests = requests_of(context, label=3)
    results = class_engine.generate(requests, decode=False, progress=False)
    assert mismatches(golden_model(golden["c2i"]), requests, results) == dict.fromkeys(KINDS, 0)


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_kind_with_a_caption(caption_engine: Engine, golden: dict[str, Any], context: str) -> None:
    case = golden["t2i"]
    requests = requests_of(context, features=case["cond"][1][case["mask"][1].bool()])
    results = caption_engine.generate(requests, decode=False, progress=False)
    assert mismatches(golden_model(case), requests, results) == dict.fromkeys(KINDS, 0)


def test_given_codes_are_kept_and_drawn_around(class_engine: Engine, golden: dict[str, Any]) -> None:
    """A picture extended to the right and below, a hole filled, blots, and a strip in the middle, in both contexts."""
    generator = torch.Generator().manual_seed(1)
    pictures = []
    for rows, columns, kept in ((7, 13, (slice(0, 5), slice(0, 6))), (4, 11, (slice(0, 4), slice(4, 7)))):
        given = torch.full((rows, columns), -1)
        given[kept] = torch.randint(golden["c2i"]["cfg"]["vocab"], given[kept].shape, generator=generator)
        pictures.append(given)
    hole = torch.randint(golden["c2i"]["cfg"]["vocab"], (9, 9), generator=generator)
    hole[3:6, 2:7] = -1
    blots = torch.randint(golden["c2i"]["cfg"]["vocab"], (7, 11), generator=generator)
    blots[torch.rand(7, 11, generator=generator) < 0.4] = -1  # any mask is a plan
    base = {"label": 3, "stride": 3, "guidance": 2.0, "temperature": 0.0}
    given_codes = (*pictures, hole, blots)
    requests = [PanoramaRequest(**base, given=given, context=context) for given in given_codes for context in CONTEXTS]
    results = class_engine.generate(requests, decode=False, progress=False)
    model = golden_model(golden["c2i"])
    for request, result in zip(requests, results, strict=True):
        assert request.given is not None
        kept = request.given >= 0
        assert torch.equal(result.codes[kept], request.given[kept])
        assert result.codes.tolist() == draw_greedily(model, request).tolist()
        assert result.stats.drawn == int((~kept).sum())


def test_small_pictures_are_the_middle_of_a_crop(class_engine: Engine, golden: dict[str, Any]) -> None:
    """Narrower, lower, both, and next to a side of several crops; the whole crop is drawn and can be decoded."""
    base = {"label": 3, "stride": 3, "guidance": 2.0, "temperature": 0.0}
    sizes = ((2, 4), (4, 3), (1, 1), (2, 9), (8, 3))  # rows, columns
    requests = [PanoramaRequest(**base, width=16 * columns, height=16 * rows) for rows, columns in sizes]
    results = class_engine.generate(requests, decode=False, progress=False)
    model = golden_model(golden["c2i"])
    for (rows, columns), request, result in zip(sizes, requests, results, strict=True):
        whole = draw_greedily(model, request)
        top, left = (max(rows, 4) - rows) // 2, (max(columns, 4) - columns) // 2
        assert whole.shape == (max(rows, 4), max(columns, 4))
        assert result.codes.tolist() == whole[top : top + rows, left : left + columns].tolist()
        assert result.canvas is not None and torch.equal(result.canvas, whole)
        assert result.stats.drawn == whole.numel()


def test_classes_along_the_way(class_engine: Engine, golden: dict[str, Any]) -> None:
    """Three classes on one canvas, in both contexts."""
    at = [{"label": 5, "left": 0.4}, {"label": 7, "top": 80}]
    base = {"label": 3, "width": 16 * 13, "height": 16 * 10, "stride": 3, "guidance": 2.0, "temperature": 0.0}
    requests = [PanoramaRequest(**base, prompts=at, context=context) for context in CONTEXTS]
    results = class_engine.generate(requests, decode=False, progress=False)
    model = golden_model(golden["c2i"])
    wrong = [int((r.codes != draw_greedily(model, q)).sum()) for q, r in zip(requests, results, strict=True)]
    assert wrong == [0, 0]


@pytest.mark.parametrize("context", CONTEXTS)
def test_counters_equal_the_prediction(class_engine: Engine, context: str) -> None:
    """Alone in the engine, each kind takes the steps, forward tokens and copies that simulate.py predicts."""
    for kind, request in zip(KINDS, requests_of(context, label=1), strict=True):
        stats = class_engine.generate([request], decode=False, progress=False)[0].stats
        resolved = request.resolve(class_engine.config).engine_args(class_engine.config)
        expected = predict(plan_of(resolved, class_engine.config.grid), prefix_rows=1)
        got = (stats.steps, stats.drawn, stats.forward_tokens, stats.copied_slots, stats.lanes)
        assert got == (
            expected.steps, expected.drawn, expected.forward_tokens, expected.copied_slots, expected.lanes
        ), kind  # fmt: skip


@pytest.mark.parametrize(("context", "lanes"), [("recompute", 1), ("recompute", 2), ("reuse", 5), ("reuse", 6)])
def test_a_small_cache_never_blocks_a_lattice(
    class_engine: Engine, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch, context: str, lanes: int
) -> None:
    """Crops that could start early must not take the place of crops that others wait for."""
    scheduler = class_engine._engine.engine_core.engine_core.scheduler
    requests = requests_of(context, label=5)
    needed = max(
        plan_of(r.resolve(class_engine.config).engine_args(class_engine.config), class_engine.config.grid).min_resident
        for r in requests
    )
    assert needed == (5 if context == "reuse" else 1), "the smallest number of lanes tried is the least that can do"
    monkeypatch.setattr(scheduler._admission, "blocks", lanes)  # a lane of the golden model is one block
    results = class_engine.generate(requests, decode=False, progress=False)
    assert mismatches(golden_model(golden["c2i"]), requests, results) == dict.fromkeys(KINDS, 0)
