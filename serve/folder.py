"""A model folder on disk: what it holds, without loading it (layout: docs/checkpoints.md)."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path

from panoserve.configs.model import ModelConfig
from panoserve.errors import ModelFolderError


class ModelFolder:
    """config.json, model.safetensors, and optionally vq/ and text_encoder/. Raises ModelFolderError if it is none."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = ModelConfig.load(self.path)

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def has_vq(self) -> bool:
        return (self.path / "vq" / "config.json").is_file()

    @property
    def has_text_encoder(self) -> bool:
        return (self.path / "text_encoder" / "config.json").is_file()

    @cached_property
    def parameters(self) -> int:
        """Number of weights of the transformer, read from the safetensors header alone."""
        return sum(math.prod(entry["shape"]) for name, entry in self._header().items() if name != "__metadata__")

    def check_weights(self) -> None:
        """Raise ModelFolderError unless the weights are there and whole."""
        self._header()

    def _header(self) -> dict[str, dict[str, list[int]]]:
        if not self.weights.is_file():
            raise ModelFolderError(
                f"{self.path} holds no model.safetensors; expected a folder written by `panoserve convert`"
            )
        try:
            with self.weights.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, MemoryError) as error:
            raise ModelFolderError(f"{self.weights} is not a safetensors file: {error}") from None
        if self.weights.stat().st_size != 8 + length + end:
            raise ModelFolderError(f"{self.weights} is truncated or has trailing bytes; convert the checkpoint again")
        return header
