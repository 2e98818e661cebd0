"""From a user's request to a vLLM request: check, encode the text, build the prompt and the sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from panoserve.errors import InvalidRequestError
from panoserve.serve.folder import ModelFolder
from panoserve.serve.prompts import PromptAt, beside, mix
from panoserve.serve.request import PanoramaRequest

if TYPE_CHECKING:
    from vllm import SamplingParams

    from panoserve.models.text import TextEncoder


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """A resolved request with what vLLM's engines take."""

    request: PanoramaRequest
    prompt: dict[str, Any]
    params: SamplingParams
    truncated: bool


def subjects(request: PanoramaRequest) -> list[PanoramaRequest | PromptAt]:
    """What a resolved request shows: its own subject, then those of `prompts`."""
    return [request, *(prompt for prompt in request.prompts or () if isinstance(prompt, PromptAt))]


class Preparer:
    """Prepares requests for one model folder; the text encoder is loaded when first needed."""

    def __init__(self, folder: ModelFolder, context: str) -> None:
        self.folder = folder
        self.context = context
        self._text_encoder: TextEncoder | None = None

    def prepare(self, requests: Sequence[PanoramaRequest]) -> list[Submission]:
        """Check every request before any is submitted; equal prompts are encoded once. Raises InvalidRequestError."""
        resolved = [request.resolve(self.folder.config, self.context) for request in requests]
        said = [subject.prompt for request in resolved for subject in subjects(request)]
        said += [request.negative_prompt for request in resolved]
        encoded = self._encode([text for text in dict.fromkeys(said) if text is not None])
        submissions = []
        for request in resolved:
            prompt, truncated = self._prompt(request, encoded)
            submissions.append(Submission(request, prompt, self._sampling_params(request), truncated))
        return submissions

    def _prompt(
        self, request: PanoramaRequest, encoded: dict[str, tuple[torch.Tensor, bool]]
    ) -> tuple[dict[str, Any], bool]:
        """vLLM's prompt, which holds every condition of the panorama, and whether a text was cut."""
        config = self.folder.config
        conditions = request.conditions(config)
        if config.condition == "class":
            labels = [subject.label for subject in subjects(request)]
            return {"prompt_token_ids": [labels[mixture[0][0]] for mixture in conditions]}, False
        features, truncated = [], False
        for subject in subjects(request):
            rows, cut = (subject.features, False) if subject.prompt is None else encoded[subject.prompt]
            assert rows is not None
            features.append(rows)
            truncated = truncated or cut
        captions = [mix(features, mixture) for mixture in conditions]
        negative = request.negative_features
        if request.negative_prompt is not None:
            negative, cut = encoded[request.negative_prompt]
            truncated = truncated or cut
        if negative is not None:
            captions = [beside(caption, negative) for caption in captions]
        total, most = sum(map(len, captions)), config.max_prefix + config.grid.codes
        if total > most:
            raise InvalidRequestError(
                f"the {len(captions)} captions along the panorama have {total} rows together, but this model takes at "
                f"most {most}; use fewer or shorter prompts, or a smaller blend",
                "prompts",
            )
        return {"prompt_token_ids": [], "multi_modal_data": {"caption": captions}}, truncated

    def _encode(self, prompts: list[str]) -> dict[str, tuple[torch.Tensor, bool]]:
        if not prompts:
            return {}
        if self._text_encoder is None:
            if not self.folder.has_text_encoder:
                raise InvalidRequestError(
                    f"{self.folder.path} has no text_encoder/, so it takes caption features instead of a prompt; "
                    "add one with `panoserve convert ... --text-encoder DIR`",
                    "prompt",
                )
            from panoserve.models.text import TextEncoder

            self._text_encoder = TextEncoder(
                self.folder.path / "text_encoder", max_length=self.folder.config.caption_length, dtype=torch.float32
            )
        return dict(zip(prompts, self._text_encoder.encode(prompts), strict=True))

    def _sampling_params(self, request: PanoramaRequest) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        config = self.folder.config
        args = request.engine_args(config)
        return SamplingParams(
            temperature=request.temperature,
            top_k=request.top_k or 0,
            top_p=request.top_p,
            max_tokens=args.rows * args.columns,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=args.to_extra_args(),
        )
