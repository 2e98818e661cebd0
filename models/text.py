"""Prompts to caption features: cleaning, then a T5 encoder (facts.md 1.10)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from panoserve.errors import ModelFolderError
from panoserve.models.cleaning import clean_caption

__all__ = ["EncodedText", "TextEncoder", "clean_caption"]


# Of a prompt, before it is cleaned, which takes time as the square of its length: far more than any encoder reads.
MAX_CHARACTERS = 4000


class EncodedText(NamedTuple):
    features: Tensor  # [n, caption_dim]: the valid rows only, the end-of-sequence row among them; n <= max_length
    truncated: bool  # the prompt had more tokens than max_length; the last ones were dropped


class TextEncoder:
    """A T5 encoder with its tokenizer, from a local folder only; nothing is ever downloaded."""

    def __init__(
        self,
        folder: Path | str,
        max_length: int = 120,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ) -> None:
        """Raises ModelFolderError unless `folder` holds a T5 encoder and its tokenizer."""
        from transformers import AutoTokenizer, T5EncoderModel

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ModelFolderError(f"{folder} holds no config.json; expected a T5 encoder saved by transformers")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = T5EncoderModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelFolderError(f"{folder} cannot be loaded as a T5 encoder with tokenizer: {reason}") from error
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.max_length = max_length
        self.batch_size = batch_size

    @property
    def caption_dim(self) -> int:
        """Width of the features."""
        return int(self.model.config.d_model)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[EncodedText]:
        """Features of every prompt, in the encoder's dtype, on the CPU. Padding changes no valid row."""
        encoded: list[EncodedText] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            found = self._encode_batch([clean_caption(prompt[:MAX_CHARACTERS]) for prompt in batch])
            encoded += [
                text._replace(truncated=text.truncated or len(prompt) > MAX_CHARACTERS)
                for prompt, text in zip(batch, found, strict=True)
            ]
        return encoded

    def _encode_batch(self, texts: list[str]) -> list[EncodedText]:
        full = self.tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
        batch = self.tokenizer(
            texts,
            padding="longest",
            truncation=True,
            max_length=self.max_length,
            padding_side="right",
            return_tensors="pt",
        )
        mask = batch["attention_mask"].to(self.model.device)
        states = self.model(input_ids=batch["input_ids"].to(self.model.device), attention_mask=mask).last_hidden_state
        return [
            EncodedText(rows[valid.bool()].cpu(), truncated=len(ids) > self.max_length)
            for rows, valid, ids in zip(states, mask, full, strict=True)
        ]
