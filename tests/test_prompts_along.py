"""Prompts along a panorama: where each is in force, how they blend, and what each crop's lane may copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoserve import PanoramaRequest
from panoserve.configs.model import ModelConfig
from panoserve.errors import InvalidRequestError
from panoserve.models.reference import CaptionEmbedder
from panoserve.redirect.layout import plan_of
from panoserve.redirect.plan import Copy, Feed, copy_parents
from panoserve.serve.prompts import SAMPLES, PromptAt, beside, mix, mixtures

CLASS = ModelConfig.preset("B", grid_side=8, downsample=10, condition="class", num_classes=10)
CAPTION = ModelConfig.preset(
    "B", grid_side=8, downsample=10, condition="caption", caption_dim=4, caption_length=6
)  # 80 pixels a crop, strides of 6 codes: crops start every 60 pixels and are centred 40 further right


def shares(**fields: Any) -> list[dict[int, float]]:
    """Of every crop of a panorama: the share of each subject."""
    request = PanoramaRequest(prompt="base", **fields).resolve(CAPTION)
    number = {index: dict(mixture) for index, mixture in enumerate(request.conditions(CAPTION))}
    prompts = request.engine_args(CAPTION).prompts
    assert prompts is not None
    return [number[prompt] for prompt in prompts]


def test_a_crop_has_the_prompt_at_its_centre() -> None:
    """Centres at 40, 100, 160, 220 and 260: pixels and shares name the same places, the last listed wins."""
    base, first, second = {0: 1.0}, {1: 1.0}, {2: 1.0}
    at = [{"prompt": "a", "left": 100}, {"prompt": "b", "left": 0.7333}]
    assert shares(width=300, height=80, prompts=at) == [base, first, first, second, second]
    inside = [PromptAt("a", left=0.5, right=0.75)]
    assert shares(width=300, height=80, prompts=inside) == [base, base, first, first, base]
    below = [PromptAt("a", top=100)]
    assert shares(width=80, height=200, prompts=below) == [base, first, first]


def test_the_first_prompt_holds_everywhere_where_none_is_given() -> None:
    request = PanoramaRequest(width=300, height=80, prompts=[{"label": 3, "left": 150}, {"label": 4, "left": 200}])
    resolved = request.resolve(CLASS)
    assert resolved.label == 3
    assert resolved.conditions(CLASS) == [((0, 1.0),), ((1, 1.0),), ((2, 1.0),)]


def test_a_blend_shades_from_one_prompt_into_the_next() -> None:
    """Around 150 with a width of 120: the crops at 100 and 160 mix, the others do not."""
    crops = shares(width=300, height=80, prompts=[PromptAt("a", left=150)], blend=120)
    assert crops[0] == {0: 1.0} and crops[3] == {1: 1.0}
    assert 0 < crops[1][1] < 0.5 < crops[2][1] < 1
    assert crops[1][0] + crops[1][1] == 1


def test_a_loop_blends_across_its_edge() -> None:
    crops = shares(width=300, height=80, prompts=[PromptAt("a", left=150)], blend=120, loop=True)
    assert 0 < crops[0][1] < 1, "the first crop is near what stands at the right edge"


places = st.none() | st.integers(0, 400) | st.floats(0, 1)


@given(
    prompts=st.lists(st.tuples(places, places, places, places), min_size=1, max_size=5),
    blend=st.integers(0, 300) | st.floats(0, 1),
    loop=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_shares_are_counted_point_by_point(prompts: list[tuple[Any, ...]], blend: float, loop: bool) -> None:
    """The slow twin of `mixtures`: at every sample the last prompt whose rectangle holds it."""

    def pixels(place: float, side: float) -> float:
        return place * side if isinstance(place, float) else place

    at = [
        {"prompt": str(i), "left": left, "right": right, "top": top, "bottom": bottom}
        for i, (left, right, top, bottom) in enumerate(prompts)
    ]
    request = PanoramaRequest(prompt="a", width=300, height=140, loop=loop, prompts=at, blend=blend).resolve(CAPTION)
    windows = request.windows(CAPTION)
    steps = [(index + 0.5) / SAMPLES - 0.5 for index in range(SAMPLES)] if blend else [0.0]
    for (row, column), mixture in zip(windows, mixtures(request, CAPTION.grid, windows), strict=True):
        counts = [0] * (1 + len(prompts))
        for across in steps:
            for down in steps:
                x = 10 * column + 40 + across * pixels(blend, 300)
                y = min(max(10 * row + 40 + down * pixels(blend, 140), 0), 139)
                x = x % 300 if loop else min(max(x, 0), 299)
                holds = 0
                for i, (left, right, top, bottom) in enumerate(prompts, start=1):
                    inside = pixels(left or 0, 300) <= x < (300 if right is None else pixels(right, 300))
                    if inside and pixels(top or 0, 140) <= y < (140 if bottom is None else pixels(bottom, 140)):
                        holds = i
                counts[holds] += 1
        assert mixture == tuple((i, count / len(steps) ** 2) for i, count in enumerate(counts) if count)


def test_a_place_that_is_null_is_left_out() -> None:
    at = [{"prompt": "a", "left": None, "right": 150, "top": None, "bottom": None}]
    assert shares(width=300, height=80, prompts=at)[0] == {1: 1.0}
    with pytest.raises(InvalidRequestError, match="left of a prompt is None"):
        shares(width=300, height=80, prompts=[PromptAt("a", left=None)])  # type: ignore[arg-type]


def test_captions_are_mixed_aligned_at_their_ends() -> None:
    short, long = torch.ones(1, 2), torch.full((3, 2), 2.0)
    assert mix([short, long], ((0, 0.25), (1, 0.75))).tolist() == [[1.5, 1.5], [1.5, 1.5], [1.75, 1.75]]
    assert mix([short, long], ((0, 1.0),)) is short


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6])
def test_a_negative_caption_is_fitted_as_the_reference_says(rows: int) -> None:
    embedder = CaptionEmbedder(CAPTION)
    caption, negative = torch.randn(rows, 4), torch.randn(3, 4)
    both = beside(caption, negative)
    assert torch.equal(both[:, :4], caption)
    assert torch.allclose(embedder(both[None, :, 4:]), embedder.negative(negative, rows), atol=1e-6)
    if rows == 3:
        assert torch.equal(both[:, 4:], negative)


def test_keys_and_values_are_copied_under_the_same_prompt_only() -> None:
    request = PanoramaRequest(prompt="base", width=320, height=80, prompts=[PromptAt("a", left=150)], stride=6)
    plan = plan_of(request.resolve(CAPTION).engine_args(CAPTION), CAPTION.grid)
    assert [lane.prompt for lane in plan.lanes] == [0, 0, 1, 1, 1]
    assert [copy_parents(lane) for lane in plan.lanes] == [set(), {0}, set(), {2}, {3}]
    first = plan.lanes[2].segments[0]
    assert first == Feed(0, 2), "what the crop before drew is fed under the new prompt"
    assert isinstance(plan.lanes[3].segments[0], Copy)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompts": []}, "prompts", "expected a list"),
    ({"prompts": "a beach"}, "prompts", "expected a list"),
    ({"prompts": [{"text": "a"}]}, "prompts", "is \\['text'\\]; expected a mapping"),
    ({"prompts": [{"prompt": "a", "left": -1}]}, "prompts", "left of a prompt is -1"),
    ({"prompts": [{"prompt": "a", "top": 1.5}]}, "prompts", "top of a prompt is 1.5"),
    ({"prompts": [{"prompt": ""}]}, "prompt", "expected some text"),
    ({"prompts": [{"left": 0.5}]}, "prompt", "none of prompt"),
    ({"prompts": [{"label": 3}]}, "label", "give prompt or features"),
    ({"blend": 2.0}, "blend", "blend is 2.0"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        PanoramaRequest(prompt="base", **fields).resolve(CAPTION)
    assert caught.value.param == param


def test_classes_do_not_blend() -> None:
    with pytest.raises(InvalidRequestError, match="this model takes classes"):
        PanoramaRequest(label=1, blend=0.5).resolve(CLASS)
