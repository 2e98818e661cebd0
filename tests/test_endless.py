"""Endless panoramas: segment by segment, the codes of one long panorama; drawn here by the plain reference model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_models import random_model
from reference_drawer import GreedyLane, draw_greedily

from panoserve import PanoramaRequest
from panoserve.configs.model import ModelConfig
from panoserve.errors import InvalidRequestError, PanoramaFailedError
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.simulate import draw_plan
from panoserve.serve.endless import AsyncEndless, Endless, Frontier
from panoserve.serve.prompts import PromptAt

SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "grid_side": 4, "downsample": 10,
}  # fmt: skip
CONFIG = ModelConfig(**SHAPE, condition="class", num_classes=8)
CAPTION = ModelConfig(**SHAPE, condition="caption", caption_dim=6, caption_length=5)
MODEL = random_model(CONFIG)
GREEDY: dict[str, Any] = {"temperature": 0.0, "guidance": 2.0, "seed": 3}


class ReferenceEngine:
    """Draws as Engine.draw does, in plain PyTorch; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[PanoramaRequest] = []

    def draw(self, requests: list[PanoramaRequest], advance: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
        for index, request in enumerate(requests):
            self.asked.append(request)
            codes = draw_greedily(MODEL, request)
            advance(codes.numel())
            yield index, SimpleNamespace(codes=codes, truncated=False)


def endless(engine: Any, context: str = "recompute", subject: Any = None, **options: Any) -> Endless:
    fields = {name: options.pop(name) for name in list(options) if name in PanoramaRequest.__dataclass_fields__}
    request = PanoramaRequest(**(subject or {"label": 3}), **GREEDY, **fields)
    return Endless(engine, Frontier(request, CONFIG, context, **options))


def joined(strips: Any, axis: int = 1) -> torch.Tensor:
    """The canvas; strips must follow on each other."""
    strips = list(strips)
    assert [s.start for s in strips] == [sum(t.codes.shape[axis] for t in strips[:i]) for i in range(len(strips))]
    return torch.cat([strip.codes for strip in strips], dim=axis)


@pytest.mark.parametrize(
    ("stride", "crops", "rows"), [(3, 1, 4), (3, 2, 4), (1, 3, 4), (4, 2, 4), (2, 3, 9), (3, 2, 8)]
)
def test_segments_make_one_long_panorama(stride: int, crops: int, rows: int) -> None:
    """Overlaps of every size, segments of every length, one band of crops and several."""
    size = {"height": 10 * rows, "stride": stride}
    codes = joined(islice(endless(ReferenceEngine(), crops=crops, **size), 4))
    assert codes.shape == (rows, 4 + stride * (4 * crops - 1))
    long = PanoramaRequest(label=3, width=10 * codes.shape[1], context="recompute", **size, **GREEDY)
    assert codes.tolist() == draw_greedily(MODEL, long).tolist()


@pytest.mark.parametrize(("row_stride", "columns"), [(3, 4), (2, 9)])
def test_downwards(row_stride: int, columns: int) -> None:
    size = {"width": 10 * columns, "stride": 3, "row_stride": row_stride}
    codes = joined(islice(endless(ReferenceEngine(), crops=2, direction="down", **size), 3), axis=0)
    assert codes.shape == (4 + row_stride * 5, columns)
    long = PanoramaRequest(label=3, height=10 * codes.shape[0], context="recompute", **size, **GREEDY)
    assert codes.tolist() == draw_greedily(MODEL, long).tolist()


def test_reuse_is_a_long_panorama_whose_segments_begin_afresh() -> None:
    """In `reuse` the first crop of a segment is fed what it is given, as where a new prompt begins."""
    codes = joined(islice(endless(ReferenceEngine(), "reuse", stride=1, crops=3), 3))
    segments = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    request = PanoramaRequest(label=3, width=10 * codes.shape[1], stride=1, **GREEDY).resolve(CONFIG)
    plan = canvas_plan(request.canvas(CONFIG), CONFIG.grid, 1, "reuse", prompts=segments)
    with torch.inference_mode():
        streams = [MODEL.cls_embedding(torch.tensor([label])) for label in (3, CONFIG.num_classes)]
        oracle = draw_plan(plan, lambda lane: GreedyLane(MODEL, torch.cat(streams), 2.0, -1))
        whole = draw_greedily(MODEL, request)
    assert codes.tolist() == oracle
    assert codes.tolist() != whole.tolist()


def test_parts_have_the_seeds_of_the_whole() -> None:
    """Every crop of every segment stands, for its seed, where it would on one long canvas."""
    engine = ReferenceEngine()
    joined(islice(endless(engine, stride=3, crops=2), 3))
    origins = [request.engine_args(CONFIG).origin for request in engine.asked]
    assert origins == [(0, 0), (0, 6), (0, 12)]
    assert [request.seed for request in engine.asked] == [3, 3, 3]


def test_prompts_change_along_the_way() -> None:
    """By their places as in a long panorama, across it too, and blended over a segment's border."""
    prompts = [PromptAt(label=5, left=70, right=150), PromptAt(label=6, left=130, top=0.5)]
    engine = ReferenceEngine()
    codes = joined(islice(endless(engine, stride=3, crops=2, height=80, prompts=prompts), 4))
    long = PanoramaRequest(
        label=3, width=10 * codes.shape[1], height=80, stride=3, context="recompute", prompts=prompts, **GREEDY
    )
    assert codes.tolist() == draw_greedily(MODEL, long).tolist()
    shown = [{p.label for p in request.prompts or ()} for request in engine.asked]  # type: ignore[union-attr]
    assert shown == [set(), {5}, {5, 6}, {6}], "only what a segment's crops may see is sent"


def test_blends_do_not_see_the_borders_of_segments() -> None:
    request = PanoramaRequest(prompt="a", prompts=[PromptAt("b", left=125)], blend=80, stride=3, seed=1)
    frontier, shares = Frontier(request, CAPTION, crops=2), []
    for _ in range(4):
        segment = frontier.next_request()
        texts = [segment.prompt, *(prompt.prompt for prompt in segment.prompts or ())]  # type: ignore[union-attr]
        numbers = segment.engine_args(CAPTION).prompts or (0, 0)
        shares += [{texts[i]: share for i, share in segment.conditions(CAPTION)[n]} for n in numbers]
        frontier.take(torch.zeros(4, (segment.width or 0) // 10, dtype=torch.long))
    whole = replace(request, width=10 * (4 + 7 * 3), height=40).resolve(CAPTION)
    mixtures, numbers = whole.conditions(CAPTION), whole.engine_args(CAPTION).prompts
    assert numbers is not None
    assert shares == [{"ab"[i]: share for i, share in mixtures[n]} for n in numbers]
    assert len({str(share) for share in shares}) > 2


def test_steering_is_a_prompt_at_the_first_crop_not_yet_drawn() -> None:
    """And what was steered by is in the request afterwards, so that the same picture can be drawn again."""
    engine = ReferenceEngine()
    strips = endless(engine, stride=3, crops=2)
    first = [next(strips)]
    assert strips.steer(label=5) == 80  # the third crop starts at column 6; its centre
    assert strips.steer(label=6, at=200) == 200
    codes = joined([*first, *islice(strips, 3)])
    assert [(p.label, p.left) for p in strips.request.prompts or ()] == [(5, 80), (6, 200)]  # type: ignore[union-attr]
    assert [request.label for request in engine.asked] == [3, 5, 5, 6]  # what nobody sees any more is not sent
    long = replace(strips.request, width=10 * codes.shape[1])
    assert codes.tolist() == draw_greedily(MODEL, long).tolist()
    with pytest.raises(InvalidRequestError, match="got prompt, but this model is class-conditional"):
        strips.steer("a city")


@pytest.mark.parametrize("axis", [0, 1])
def test_it_goes_on_from_given_codes(axis: int) -> None:
    """Stopped and taken up again: from the last crop, and the place where it stood."""
    options: dict[str, Any] = {"direction": ("down", "right")[axis], "crops": 2, "stride": 3, "row_stride": 2}
    strips = endless(ReferenceEngine(), **options)
    before = joined(islice(strips, 2), axis)
    last = strips.frontier.tail
    assert last is not None and last.shape == (4, 4)
    start = before.shape[axis] - 4
    again = endless(ReferenceEngine(), given=last, start=start, **options)
    expected, got = next(strips), next(again)
    assert got.start == expected.start == before.shape[axis]
    assert got.codes.tolist() == expected.codes.tolist()


@pytest.mark.parametrize(("limit", "ends"), [(1, [4]), (40, [4]), (41, [7]), (100, [7, 10]), (205, [7, 13, 19, 22])])
def test_a_limit_ends_it_with_whole_crops(limit: int, ends: list[int]) -> None:
    drawn = 0

    def advance(codes: int) -> None:
        nonlocal drawn
        drawn += codes

    strips = endless(ReferenceEngine(), stride=3, crops=2, limit=limit)
    strips._advance = advance
    assert [strip.start + strip.codes.shape[1] for strip in strips] == ends
    assert drawn >= 4 * ends[-1]
    assert next(strips, None) is None


def test_a_failed_segment_can_be_asked_for_again() -> None:
    engine = ReferenceEngine()
    strips = endless(engine, stride=3, crops=2)
    first = next(strips)
    draw = engine.draw
    engine.draw = lambda requests, advance: iter([(0, PanoramaFailedError("the engine is ill"))])  # type: ignore
    with pytest.raises(PanoramaFailedError, match="the engine is ill"):
        next(strips)
    engine.draw = draw  # type: ignore[method-assign]
    codes = joined([first, next(strips)])
    assert codes.tolist() == joined(islice(endless(ReferenceEngine(), stride=3, crops=2), 2)).tolist()


def test_the_asynchronous_one_draws_the_same() -> None:
    class AsyncReferenceEngine:
        async def generate(self, request: PanoramaRequest, decode: bool) -> Any:
            assert not decode
            return SimpleNamespace(codes=draw_greedily(MODEL, request), truncated=False)

    async def run() -> list[Any]:
        request = PanoramaRequest(label=3, stride=3, **GREEDY)
        engine: Any = AsyncReferenceEngine()
        strips = AsyncEndless(engine, Frontier(request, CONFIG, "recompute", crops=2, limit=160))
        return [strip async for strip in strips]

    codes = joined(asyncio.run(run()))
    assert codes.tolist() == joined(endless(ReferenceEngine(), stride=3, crops=2, limit=160)).tolist()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a width": ({"width": 400}, "width is 400, but an endless panorama grows in width"),
    "a height downwards": ({"height": 400, "direction": "down"}, "grows in height"),
    "another direction": ({"direction": "up"}, "direction is 'up', but must be right or down"),
    "a loop": ({"loop": True}, "never comes back"),
    "no crops": ({"crops": 0}, "crops is 0, but must be a whole number from 1"),
    "a limit of nothing": ({"limit": 0}, "limit is 0"),
    "a start before the beginning": ({"start": -1}, "start is -1"),
    "a share of no width": ({"prompts": [PromptAt(label=5, left=0.5)]}, "no width to take a share of"),
    "a blend of no width": ({"blend": 0.5}, "no width to take a share of"),
    "holes to fill": ({"given": torch.full((4, 4), -1)}, "codes that are all known"),
    "unknown codes": ({"given": torch.full((4, 4), 61)}, "above 60"),
    "codes of another height": ({"given": torch.zeros(4, 4, dtype=torch.long), "height": 80}, "given is 40 pixels"),
    "too narrow": ({"direction": "down", "width": 30}, "width is 30"),
    "a stride beyond the grid": ({"stride": 5}, "stride is 5"),
    "another kind of subject": ({"subject": {"prompt": "a sea"}}, "got prompt"),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_endless_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        endless(ReferenceEngine(), **fields)
