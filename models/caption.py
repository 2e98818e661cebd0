"""Caption features as a vLLM multimodal input.

A request's prompt is empty; its multimodal data is {"caption": features [n, caption_dim]}, or a list of such; the
processor inserts n placeholder tokens for each, which the model fills with the projected features (design.md 3, with
the traps found there). Features [n, 2 * caption_dim] hold the caption and, beside it, what takes the place of the
unconditional rows: a negative caption.
Features must be validated before they come here: a wrong width would take the engine down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptIndexTargets,
    PromptInsertion,
    PromptUpdate,
)

MODALITY = "caption"
PLACEHOLDER = 0  # any valid code: its embedding is overwritten


class CaptionItems(ProcessorBatchItems[torch.Tensor]):
    """One caption's features per item."""

    def __init__(self, data: Sequence[torch.Tensor]) -> None:
        super().__init__(data, MODALITY)


class CaptionParser(MultiModalDataParser):
    def _get_subparsers(self) -> Mapping[str, Any]:
        return {MODALITY: self._parse_caption}

    def _parse_caption(self, data: Any) -> ModalityDataItems[Any, Any]:
        return CaptionItems([data] if isinstance(data, torch.Tensor) else list(data))


class CaptionInfo(BaseProcessingInfo):
    """Captions of at most caption_length rows each: one, or as many as a panorama has prompts along the way."""

    def get_data_parser(self) -> MultiModalDataParser:
        return CaptionParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {MODALITY: self.get_hf_config().caption_length}


class CaptionDummyInputs(BaseDummyInputsBuilder[CaptionInfo]):
    """The longest possible caption, for vLLM's memory profile."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        config = self.info.get_hf_config()
        features = torch.zeros(config.caption_length, config.caption_dim)
        return {MODALITY: [features] * mm_counts.get(MODALITY, 0)}


class CaptionProcessor(BaseMultiModalProcessor[CaptionInfo]):
    """Passes features through and inserts one placeholder per row at the start of the prompt."""

    requires_tokenizer = False

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        return BatchFeature({MODALITY: list(mm_items[MODALITY].get_all())} if MODALITY in mm_items else {})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {MODALITY: MultiModalFieldConfig.batched(MODALITY)}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        def placeholders(index: int) -> list[int]:
            return [PLACEHOLDER] * len(mm_items[MODALITY].get(index))

        return [PromptInsertion(modality=MODALITY, target=PromptIndexTargets.start(), insertion=placeholders)]
