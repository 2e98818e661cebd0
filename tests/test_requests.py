"""Requests: defaults are filled in from the model, and everything wrong is named before anything runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import panoserve
from panoserve import PanoramaRequest
from panoserve.configs.grid import Canvas, Frame
from panoserve.configs.model import ModelConfig, SamplingDefaults
from panoserve.errors import InvalidRequestError, ModelFolderError, PanoserveError
from panoserve.serve.prompts import PromptAt

CLASS = ModelConfig.preset("B", grid_side=24, downsample=16, condition="class", num_classes=1000)
CAPTION = ModelConfig.preset(
    "XL",
    grid_side=32,
    downsample=16,
    condition="caption",
    caption_dim=2048,
    caption_length=120,
    sampling=SamplingDefaults(guidance=7.5, top_k=1000),
)


def test_the_public_api_fits_one_screen() -> None:
    assert panoserve.__all__ == ["Engine", "Panorama", "PanoramaRequest", "__version__"]
    for name in panoserve.__all__:
        assert getattr(panoserve, name) is not None
    with pytest.raises(AttributeError, match="public names"):
        panoserve.Egine  # noqa: B018


def test_defaults_come_from_the_model() -> None:
    request = PanoramaRequest(prompt="hills").resolve(CAPTION)
    assert (request.width, request.height, request.stride, request.row_stride) == (6 * 512, 512, 24, 24)
    assert not request.loop
    assert PanoramaRequest(prompt="hills", stride=8).resolve(CAPTION).row_stride == 8
    assert (request.guidance, request.temperature, request.top_k, request.top_p) == (7.5, 1.0, 1000, 1.0)
    assert request.context == "reuse"
    assert isinstance(request.seed, int)
    again = request.resolve(CAPTION)
    assert (again.seed, again.width, again.guidance) == (request.seed, request.width, request.guidance)
    assert PanoramaRequest(label=3, seed=0).resolve(CLASS, "recompute").context == "recompute"


def test_a_model_without_guidance_defaults_to_none() -> None:
    config = replace(CLASS, unconditional=False)
    assert PanoramaRequest(label=1).resolve(config).guidance == 1.0


def test_given_codes_name_the_size() -> None:
    request = PanoramaRequest(label=1, given=torch.full((30, 50), -1)).resolve(CLASS)
    assert (request.width, request.height) == (800, 480)


def test_a_small_picture_is_the_middle_of_a_crop() -> None:
    """Each way that it is smaller; given codes and prompts have their places on the picture."""
    given = torch.full((4, 31), -1)
    given[1, 2] = 7
    request = PanoramaRequest(label=1, given=given, prompts=[PromptAt(label=2, top=0.5)]).resolve(CLASS)
    assert (request.width, request.height) == (31 * 16, 4 * 16)
    assert request.canvas(CLASS) == Canvas(24, 31)
    frame = request.frame(CLASS)
    assert frame == Frame(10, 0, 4, 31)
    assert frame.box(16) == (0, 160, 31 * 16, 224)
    args = request.engine_args(CLASS)
    assert (args.rows, args.columns, args.prompts) == (24, 31, (0, 0))
    assert request.conditions(CLASS) == [((1, 1.0),)]  # the crop's centre is the picture's, half way down
    assert args.given is not None
    assert [(r, c) for r, row in enumerate(args.given) for c, code in enumerate(row) if code != -1] == [(11, 2)]
    narrow = PanoramaRequest(label=1, width=9 * 16, height=400).resolve(CLASS)
    assert (narrow.canvas(CLASS), narrow.frame(CLASS)) == (Canvas(25, 24), Frame(0, 7, 25, 9))
    whole = PanoramaRequest(label=1).resolve(CLASS)
    assert whole.frame(CLASS) == Frame(0, 0, 24, 144)


BAD: list[tuple[ModelConfig, dict[str, Any], str, str]] = [
    (CLASS, {"label": 1, "width": 1000}, "width", "nearest is 992"),
    (CLASS, {"label": 1, "width": 16 * 10**9}, "width", "at most 2147483647"),
    (CLASS, {"label": 1, "width": 10**400 + 1}, "width", "at most 2147483647"),
    (CLASS, {"label": 1, "width": 16 * 10**6, "height": 1600, "stride": 1}, "stride", "crops, but at most 1000000"),
    (CLASS, {"label": 1, "width": 7}, "width", "multiple of 16; the nearest is 16"),
    (CLASS, {"label": 1, "height": 300}, "height", "nearest is 304"),
    (CLASS, {"label": 1, "width": 160, "loop": True}, "width", "wider than one crop: at least 400"),
    (CLASS, {"label": 1, "row_stride": 25}, "row_stride", "row_stride is 25.* from 1 to 24"),
    (CLASS, {"label": 1, "width": 384, "loop": True}, "width", "wider than one crop: at least 400"),
    (CLASS, {"label": 1, "given": [[3]]}, "given", "given is list"),
    (CLASS, {"label": 1, "given": torch.zeros(24, 24)}, "given", "given is torch.float32"),
    (CLASS, {"label": 1, "given": torch.zeros(24, 25, dtype=torch.int64)}, "given", "no code to draw"),
    (CLASS, {"label": 1, "given": torch.full((24, 25), -2)}, "given", "from -2 to -2, expected 0 to 16383"),
    (CLASS, {"label": 1, "given": torch.full((24, 25), 16384)}, "given", "expected 0 to 16383"),
    (CLASS, {"label": 1, "width": 384, "given": torch.full((24, 23), -1)}, "given", r"canvas is \[24, 24\]"),
    (
        CLASS,
        {"label": 1, "width": 480, "given": torch.full((24, 25), -1)},
        "given",
        r"\[24, 25\] codes, but .* \[24, 30\]",
    ),
    (CLASS, {"label": 1, "loop": 1}, "loop", "True or False"),
    (CLASS, {"label": 1, "width": 640.0}, "width", "whole number"),
    (CLASS, {"label": 1, "stride": 0}, "stride", "from 1 to 24"),
    (CLASS, {"label": 1, "stride": 25}, "stride", "from 1 to 24"),
    (CLASS, {"label": 1, "prompt": "sea"}, "label", "exactly one"),
    (CLASS, {}, "prompt", "exactly one"),
    (CLASS, {"prompt": "sea"}, "prompt", "class-conditional; give label"),
    (CAPTION, {"label": 3}, "label", "caption-conditional; give prompt or features"),
    (CLASS, {"label": 1000}, "label", "from 0 to 999"),
    (CLASS, {"label": -1}, "label", "from 0 to 999"),
    (CLASS, {"label": True}, "label", "from 0 to 999"),
    (CAPTION, {"prompt": "  "}, "prompt", "expected some text"),
    (CAPTION, {"features": torch.full((3, 2048), math.nan)}, "features", "NaN"),
    (CAPTION, {"features": torch.zeros(3, 2047)}, "features", r"\[n, 2048\]"),
    (CAPTION, {"features": torch.zeros(121, 2048)}, "features", "1 to 120"),
    (CAPTION, {"features": torch.zeros(0, 2048)}, "features", "1 to 120"),
    (CAPTION, {"features": [[0.0] * 2048]}, "features", "got list|are list"),
    (CLASS, {"label": 1, "negative_prompt": "rain"}, "negative_prompt", "class-conditional; leave it out"),
    (CAPTION, {"prompt": "sea", "negative_prompt": "\n"}, "negative_prompt", "expected some text"),
    (CAPTION, {"prompt": "sea", "negative_features": torch.zeros(3, 2)}, "negative_features", r"\[n, 2048\]"),
    (
        CAPTION,
        {"prompt": "sea", "negative_prompt": "rain", "negative_features": torch.zeros(3, 2048)},
        "negative_features",
        "give either",
    ),
    (
        CAPTION,
        {"prompt": "sea", "negative_prompt": "rain", "guidance": 1},
        "negative_prompt",
        "no effect.* guidance 1;",
    ),
    (CLASS, {"label": 1, "guidance": -1.0}, "guidance", "from 0 to 100"),
    (CLASS, {"label": 1, "guidance": math.nan}, "guidance", "from 0 to 100"),
    (CLASS, {"label": 1, "guidance_interval": -2}, "guidance_interval", "from -1"),
    (CLASS, {"label": 1, "temperature": math.inf}, "temperature", "from 0 to 2"),
    (CLASS, {"label": 1, "temperature": -0.1}, "temperature", "from 0 to 2"),
    (CLASS, {"label": 1, "top_k": 16385}, "top_k", "from 0 to 16384"),
    (CLASS, {"label": 1, "top_p": 0.0}, "top_p", "above 0"),
    (CLASS, {"label": 1, "top_p": 1.5}, "top_p", "from 0 to 1"),
    (CLASS, {"label": 1, "seed": -3}, "seed", "from 0"),
    (CLASS, {"label": 1, "priority": 0.5}, "priority", "a whole number"),
    (CLASS, {"label": 1, "context": "both"}, "context", "reuse or recompute"),
    (replace(CLASS, unconditional=False), {"label": 1, "guidance": 2.0}, "guidance", "no unconditional branch"),
]


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_a_surrogate_pair_is_no_prompt(name: str) -> None:
    fields = {"prompt": "a sea", name: "a lake \ud83d"}
    with pytest.raises(InvalidRequestError, match="half of a surrogate pair") as caught:
        PanoramaRequest(**fields).resolve(CAPTION)
    assert caught.value.param == name
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"grid_side": "12"}, "grid_side is '12'"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"condition": "x"}, "condition is 'x'"),
        ({"sampling": {"guidence": 1}}, "does not describe a LlamaGen model"),
        ({"sampling": [1]}, "does not describe a LlamaGen model"),
    ],
)
def test_a_damaged_config_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFolderError, match=message):
        ModelConfig.from_dict(CLASS.to_dict() | changes)


@pytest.mark.parametrize(("config", "fields", "param", "message"), BAD)
def test_bad_requests_name_the_field(config: ModelConfig, fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        PanoramaRequest(**fields).resolve(config)
    assert caught.value.param == param
    assert isinstance(caught.value, PanoserveError)
    assert "\n" not in str(caught.value)
