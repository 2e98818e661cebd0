"""From a user's request to a vLLM request: check, encode the text, build the prompt and the sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from panoserve.errors import InvalidRequestError
from panoserve.serve.folder import ModelFolder
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


class Preparer:
    """Prepares requests for one model folder; the text encoder is loaded when first needed."""

    def __init__(self, folder: ModelFolder, context: str) -> None:
        self.folder = folder
        self.context = context
        self._text_encoder: TextEncoder | None = None

    def prepare(self, requests: Sequence[PanoramaRequest]) -> list[Submission]:
        """Check every request before any is submitted; equal prompts are encoded once. Raises InvalidRequestError."""
        resolved = [request.resolve(self.folder.config, self.context) for request in requests]
        encoded = self._encode(list(dict.fromkeys(r.prompt for r in resolved if r.prompt is not None)))
        submissions = []
        for request in resolved:
            truncated = False
            if request.label is not None:
                prompt: dict[str, Any] = {"prompt_token_ids": [request.label]}
            else:
                features = request.features
                if request.prompt is not None:
                    features, truncated = encoded[request.prompt]
                prompt = {"prompt_token_ids": [], "multi_modal_data": {"caption": features}}
            submissions.append(Submission(request, prompt, self._sampling_params(request), truncated))
        return submissions

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
