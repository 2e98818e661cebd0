"""What a user asks for, and what a user gets."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from panoserve.configs.grid import Canvas, Frame
from panoserve.configs.model import ModelConfig
from panoserve.configs.wire import UNKNOWN, PanoramaArgs
from panoserve.errors import InvalidRequestError
from panoserve.redirect.layout import check_loop, check_windows, crop_windows
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.prompts import Mixture, Part, Place, PromptAt, check_place, mixtures, parse_prompts

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

DEFAULT_CROPS_WIDE = 6
MAX_GUIDANCE = 100.0
MAX_TEMPERATURE = 2.0  # vLLM refuses more
MAX_SEED = 2**63 - 1
MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class PanoramaRequest:
    """One panorama to draw. Exactly one of prompt, label and features says what; the rest has defaults.

    A field left None is filled in by the engine from the model (`resolve`): width and height in pixels (one crop high,
    six wide), stride in codes (three quarters of the grid), row_stride (as stride), the model's own sampling defaults,
    and a fresh seed. A panorama more than one crop high grows in two directions, or downwards if it is one crop wide.
    """

    prompt: str | None = None
    label: int | None = None
    features: torch.Tensor | None = None  # [n, caption_dim], n <= caption_length: a text encoder's output
    width: int | None = None
    height: int | None = None
    stride: int | None = None  # columns that a crop adds
    guidance: float | None = None  # classifier-free guidance scale; 1 or less is unguided
    guidance_interval: int = -1  # guide only codes 0 .. interval + 1 of each crop; negative: all (facts.md 1.8)
    temperature: float | None = None  # 0 is greedy
    top_k: int | None = None  # 0 keeps every code
    top_p: float | None = None
    seed: int | None = None
    context: str | None = None  # "reuse" or "recompute"; the engine's own by default
    row_stride: int | None = None  # rows that a crop adds
    loop: bool = False  # the right edge meets the left one, as in a view all around
    prompts: Sequence[PromptAt] | None = None  # what else to draw, and where; mappings of PromptAt's fields do as well
    given: torch.Tensor | None = None  # int64 [H, W]: codes of the canvas that are kept, -1 where codes are to be drawn
    blend: Place = 0  # over what width prompts shade into each other: caption features are mixed
    negative_prompt: str | None = None  # what guidance leads away from, in place of "nothing in particular"
    negative_features: torch.Tensor | None = None  # [m, caption_dim]: the same as a text encoder's output
    priority: int = 0  # of the requests that wait for a place in the cache, which begins first: that of the least
    part: Part | None = None  # where the canvas stands on a larger picture that is drawn part by part

    def resolve(self, config: ModelConfig, context: str = "reuse") -> PanoramaRequest:
        """The same request with every None filled in, checked against the model. Raises InvalidRequestError."""
        step = config.grid.downsample
        rows, columns = (0, 0) if self.given is None else given_size(self.given)
        prompts = None if self.prompts is None else parse_prompts(self.prompts)
        nothing = self.prompt is None and self.label is None and self.features is None
        first = prompts[0] if prompts and nothing else self
        stride = config.grid.default_stride if self.stride is None else self.stride
        filled = replace(
            self,
            prompts=prompts,
            prompt=first.prompt,
            label=first.label,
            features=first.features,
            width=(columns or DEFAULT_CROPS_WIDE * config.grid_side) * step if self.width is None else self.width,
            height=(rows or config.grid_side) * step if self.height is None else self.height,
            stride=stride,
            row_stride=stride if self.row_stride is None else self.row_stride,
            guidance=config.sampling.guidance if self.guidance is None else self.guidance,
            temperature=config.sampling.temperature if self.temperature is None else self.temperature,
            top_k=config.sampling.top_k if self.top_k is None else self.top_k,
            top_p=config.sampling.top_p if self.top_p is None else self.top_p,
            seed=secrets.randbits(31) if self.seed is None else self.seed,
            context=context if self.context is None else self.context,
        )
        if self.guidance is None and not config.unconditional:
            filled = replace(filled, guidance=1.0)
        filled._check(config)
        return filled

    def _check(self, config: ModelConfig) -> None:
        check_subject(self, config)
        assert self.width is not None and self.height is not None
        assert self.stride is not None and self.row_stride is not None
        canvas = config.grid.canvas_of(self.width, self.height)
        config.grid.check_stride(self.stride)
        config.grid.check_stride(self.row_stride, "row_stride")
        if not isinstance(self.loop, bool):
            raise InvalidRequestError(f"loop is {self.loop!r}, but must be True or False", "loop")
        if self.loop:
            check_loop(canvas, config.grid)
        check_windows(canvas, config.grid, self.stride, self.row_stride, self.loop)
        self._check_prompts(config)
        if self.given is not None:
            check_given(self.given, self.frame(config), config)
        check_number("guidance", self.guidance, 0, MAX_GUIDANCE)
        if self.guidance is not None and self.guidance > 1 and not config.unconditional:
            raise InvalidRequestError(
                f"guidance is {self.guidance}, but this model has no unconditional branch; leave it out or use 1",
                "guidance",
            )
        check_negative(self, config)
        check_whole("guidance_interval", self.guidance_interval, -1, config.grid.codes)
        check_number("temperature", self.temperature, 0, MAX_TEMPERATURE)
        check_whole("top_k", self.top_k, 0, config.vocab_size)
        check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise InvalidRequestError("top_p is 0, but must be above 0 and at most 1 (1 keeps every code)", "top_p")
        check_whole("seed", self.seed, 0, MAX_SEED)
        check_whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.context not in CONTEXTS:
            raise InvalidRequestError(f"context is {self.context!r}, but must be {' or '.join(CONTEXTS)}", "context")

    def _check_prompts(self, config: ModelConfig) -> None:
        check_place("blend", self.blend)
        if self.blend and config.condition == "class":
            raise InvalidRequestError(
                "blend mixes caption features, but this model takes classes; leave it out", "blend"
            )
        for prompt in self.prompts or ():
            assert isinstance(prompt, PromptAt)
            check_subject(prompt, config)
            for name in ("left", "right", "top", "bottom"):
                if name in ("left", "top") or getattr(prompt, name) is not None:
                    check_place(f"{name} of a prompt", getattr(prompt, name))

    def canvas(self, config: ModelConfig) -> Canvas:
        """The canvas of a resolved request: at least one crop, of which a smaller picture is the middle."""
        assert self.width is not None and self.height is not None
        return config.grid.canvas_of(self.width, self.height)

    def frame(self, config: ModelConfig) -> Frame:
        """Which part of the canvas becomes the picture of a resolved request."""
        assert self.width is not None and self.height is not None
        return config.grid.frame_of(self.width, self.height)

    def windows(self, config: ModelConfig) -> list[tuple[int, int]]:
        """First (row, column) of every crop of a resolved request, in drawing order."""
        assert self.stride is not None and self.row_stride is not None
        windows = crop_windows(self.canvas(config), config.grid, self.stride, self.row_stride, self.loop)
        return [place for _, place in windows]

    def conditions(self, config: ModelConfig) -> list[Mixture]:
        """What the crops of a resolved request are conditioned on, each mixture once, in the order of their use."""
        if not self.prompts:
            return [((0, 1.0),)]
        return list(dict.fromkeys(mixtures(self, config.grid, self.windows(config))))

    def engine_args(self, config: ModelConfig) -> PanoramaArgs:
        """What the scheduler is told about a resolved request."""
        assert self.stride is not None and self.seed is not None
        assert self.guidance is not None and self.context is not None
        canvas = self.canvas(config)
        prompts = None
        if self.prompts:
            number = {mixture: index for index, mixture in enumerate(self.conditions(config))}
            crops = mixtures(self, config.grid, self.windows(config))
            prompts = tuple(number[mixture] for mixture in crops)
        return PanoramaArgs(
            rows=canvas.rows,
            columns=canvas.columns,
            stride=self.stride,
            context=self.context,
            seed=self.seed,
            guidance=max(float(self.guidance), 1.0),
            guidance_interval=self.guidance_interval,
            row_stride=self.row_stride,
            loop=self.loop,
            prompts=prompts,
            given=self._given_codes(config),
            origin=(0, 0) if self.part is None else (self.part.row, self.part.column),
        )

    def _given_codes(self, config: ModelConfig) -> list[list[int]] | None:
        """The given codes in their place on the canvas."""
        if self.given is None:
            return None
        canvas, frame = self.canvas(config), self.frame(config)
        codes = self.given.new_full((canvas.rows, canvas.columns), UNKNOWN)
        codes[frame.top : frame.top + frame.rows, frame.left : frame.left + frame.columns] = self.given
        return codes.tolist()


@dataclass(frozen=True, slots=True)
class PanoramaStats:
    """The engine's counters for one panorama. `seconds` runs from submission to the last code."""

    steps: int  # engine steps in which any of its lanes ran
    drawn: int  # codes
    forward_tokens: int  # model inputs, condition rows included; each is two rows with guidance
    copied_slots: int  # KV slots taken from another lane (context reuse)
    lanes: int
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Panorama:
    """One drawn panorama. `request` is resolved: it draws the same picture again."""

    request: PanoramaRequest
    codes: torch.Tensor  # [H, W] int64
    image: Image | None
    stats: PanoramaStats
    truncated: bool  # the prompt was longer than the text encoder takes
    canvas: torch.Tensor | None = None  # all that was drawn, if the picture is smaller than a crop


def check_subject(request: PanoramaRequest | PromptAt, config: ModelConfig) -> None:
    """Exactly one of prompt, label and features, and of the model's kind."""
    given = [name for name in ("prompt", "label", "features") if getattr(request, name) is not None]
    wanted = "label" if config.condition == "class" else "prompt or features"
    if len(given) != 1:
        got = " and ".join(given) if given else "none of prompt, label and features"
        raise InvalidRequestError(f"got {got}; give exactly one (this model takes {wanted})", (given or ["prompt"])[-1])
    name = given[0]
    if (name == "label") != (config.condition == "class"):
        raise InvalidRequestError(f"got {name}, but this model is {config.condition}-conditional; give {wanted}", name)
    if name == "label":
        check_whole("label", request.label, 0, config.num_classes - 1)
    elif name == "prompt":
        if not isinstance(request.prompt, str) or not request.prompt.strip():
            raise InvalidRequestError(f"prompt is {request.prompt!r}; expected some text", "prompt")
        check_text("prompt", request.prompt)
    else:
        check_features("features", request.features, config)


def check_negative(request: PanoramaRequest, config: ModelConfig) -> None:
    """A negative prompt must be a text or features, for a model that takes them, and guided away from."""
    given = [name for name in ("negative_prompt", "negative_features") if getattr(request, name) is not None]
    if not given:
        return
    name = given[0]
    if config.condition == "class":
        raise InvalidRequestError(f"got {name}, but this model is class-conditional; leave it out", name)
    if len(given) > 1:
        raise InvalidRequestError("got negative_prompt and negative_features; give either", given[1])
    if name == "negative_features":
        check_features(name, request.negative_features, config)
    elif not isinstance(request.negative_prompt, str) or not request.negative_prompt.strip():
        raise InvalidRequestError(
            f"negative_prompt is {request.negative_prompt!r}; expected some text, or leave it out", name
        )
    else:
        check_text(name, request.negative_prompt)
    assert request.guidance is not None
    if request.guidance <= 1:
        raise InvalidRequestError(
            f"{name} has no effect with guidance {request.guidance:g}; use guidance above 1, or leave it out", name
        )


def check_text(name: str, text: str) -> None:
    """Refuse half a surrogate pair, which JSON and file names can hold, and no tokenizer or picture file can."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequestError(f"{name} holds half of a surrogate pair, which is no character", name)


def given_size(given: Any) -> tuple[int, int]:
    """(rows, columns) of `given`. Raises InvalidRequestError unless it is a tensor of whole numbers [H, W]."""
    import torch

    whole = isinstance(given, torch.Tensor) and given.dim() == 2 and given.dtype in (torch.int64, torch.int32)
    if not whole:
        got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        raise InvalidRequestError(f"given is {got}; expected an int64 tensor [H, W] of codes, -1 to draw", "given")
    return int(given.shape[0]), int(given.shape[1])


def check_given(given: torch.Tensor, frame: Frame, config: ModelConfig) -> None:
    """Given codes must be of the picture's size and of the model's codebook, and leave something to draw."""
    if given_size(given) != (frame.rows, frame.columns):
        raise InvalidRequestError(
            f"given is {list(given.shape)} codes, but the canvas is [{frame.rows}, {frame.columns}]", "given"
        )
    least, most = int(given.min()), int(given.max())
    if least < UNKNOWN or most >= config.vocab_size:
        raise InvalidRequestError(
            f"given holds codes from {least} to {most}, expected 0 to {config.vocab_size - 1}, or -1 to draw", "given"
        )
    if least != UNKNOWN:
        raise InvalidRequestError("given leaves no code to draw; put -1 where codes are to be drawn", "given")


def check_features(name: str, features: Any, config: ModelConfig) -> None:
    """Caption features must be finite and [n, caption_dim], 1 <= n <= caption_length; others would stop the engine."""
    import torch

    shape = tuple(getattr(features, "shape", ()))
    good_rows = len(shape) == 2 and 1 <= shape[0] <= config.caption_length and shape[1] == config.caption_dim
    if not isinstance(features, torch.Tensor) or not good_rows or not features.is_floating_point():
        got = f"{features.dtype} {shape}" if isinstance(features, torch.Tensor) else type(features).__name__
        raise InvalidRequestError(
            f"{name} are {got}; expected a floating point tensor [n, {config.caption_dim}] with n from 1 to "
            f"{config.caption_length}",
            name,
        )
    if not bool(torch.isfinite(features).all()):
        raise InvalidRequestError(f"{name} hold NaN or infinite values; expected finite numbers", name)


def check_number(name: str, value: Any, low: float, high: float) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not low <= value <= high:  # which NaN and infinity are not
        raise InvalidRequestError(f"{name} is {value!r}, but must be a number from {low:g} to {high:g}", name)


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequestError(f"{name} is {value!r}, but must be a whole number from {low} to {high}", name)
