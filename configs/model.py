"""The shape of a transformer, and its `config.json`.

One dataclass, one file format: the fields below are the keys of a model folder's config.json (vLLM reads the same
file through models/hf_config.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from panoserve.configs.grid import Grid
from panoserve.errors import ModelFolderError

MODEL_TYPE = "llamagen"
CLASS_ARCHITECTURE = "LlamaGenForImageGeneration"  # the two vLLM classes of models/llamagen.py
CAPTION_ARCHITECTURE = "LlamaGenForTextToImage"


def ffn_width(hidden_size: int) -> int:
    """SwiGLU width: two thirds of 4D, rounded up to a multiple of 256 (facts.md 1.1)."""
    return -(-(2 * 4 * hidden_size // 3) // 256) * 256


@cache
def size_presets() -> dict[str, dict[str, int]]:
    """The published sizes by name (GPT-B ... GPT-7B)."""
    text = (resources.files("panoserve.configs") / "presets" / "sizes.yaml").read_text(encoding="utf-8")
    sizes: dict[str, dict[str, int]] = yaml.safe_load(text)
    return {name: {**size, "intermediate_size": ffn_width(size["hidden_size"])} for name, size in sizes.items()}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets when it does not say: upstream's demo values for the model's kind (facts.md 1.8)."""

    guidance: float = 4.0
    temperature: float = 1.0
    top_k: int = 0  # 0 keeps every code
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything needed to build one LlamaGen transformer and to place its codes on a canvas."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    grid_side: int
    downsample: int
    condition: Literal["class", "caption"]
    num_classes: int = 0  # class-conditional only; the null class has id num_classes
    caption_dim: int = 0  # caption-conditional only: width of the text encoder's features
    caption_length: int = 0  # caption-conditional only: most caption rows (120 in every published model)
    unconditional: bool = True  # has a null class or an uncond_embedding, so that guidance is possible
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                 "grid_side", "downsample")  # fmt: skip
        for name in sizes:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelFolderError(f"{name} is {value!r}, expected a whole number from 1 on")
        if self.condition not in ("class", "caption"):
            raise ModelFolderError(f"condition is {self.condition!r}, expected class or caption")
        if self.hidden_size % self.num_attention_heads:
            raise ModelFolderError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.head_dim % 4:
            raise ModelFolderError(f"head_dim must be a multiple of 4 for two-dimensional RoPE, got {self.head_dim}")
        if self.condition == "class" and self.num_classes < 1:
            raise ModelFolderError("a class-conditional model needs num_classes >= 1")
        if self.condition == "caption" and (self.caption_dim < 1 or self.caption_length < 1):
            raise ModelFolderError("a caption-conditional model needs caption_dim >= 1 and caption_length >= 1")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def grid(self) -> Grid:
        return Grid(self.grid_side, self.downsample)

    @property
    def max_prefix(self) -> int:
        """Most condition positions before the grid: 1 class row, or caption_length caption rows."""
        return 1 if self.condition == "class" else self.caption_length

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        architecture = CLASS_ARCHITECTURE if self.condition == "class" else CAPTION_ARCHITECTURE
        return {"model_type": MODEL_TYPE, "architectures": [architecture], **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read the content of a config.json; keys that transformers adds are ignored, missing ones are named."""
        names = {f.name for f in fields(cls)}
        known = {key: value for key, value in values.items() if key in names}
        try:
            known["sampling"] = SamplingDefaults(**(values.get("sampling") or {}))
            return cls(**known)
        except TypeError as error:
            raise ModelFolderError(f"config.json does not describe a LlamaGen model: {error}") from None

    @classmethod
    def load(cls, folder: Path | str) -> ModelConfig:
        """Read `folder`/config.json. Raises ModelFolderError with what is wrong and what was expected."""
        folder = Path(folder)
        path = folder / "config.json"
        if not folder.is_dir():
            raise ModelFolderError(
                f"model folder {folder} does not exist; expected a folder written by `panoserve convert`, "
                "or assets/pano-mini of this repository"
            )
        if not path.is_file():
            raise ModelFolderError(f"{folder} holds no config.json; expected a folder written by `panoserve convert`")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelFolderError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
            got = values.get("model_type") if isinstance(values, dict) else type(values).__name__
            raise ModelFolderError(f"{path} says model_type {got!r}, expected {MODEL_TYPE!r}")
        return cls.from_dict(values)

    @classmethod
    def preset(cls, size: str, **values: Any) -> ModelConfig:
        """A published size (`GPT-B`, or `B`) with the given grid and condition; vocab_size defaults to 16384."""
        name = size if size.startswith("GPT-") else f"GPT-{size}"
        if name not in size_presets():
            raise ModelFolderError(f"unknown model size {size!r}; known: {', '.join(size_presets())}")
        return cls(**{"vocab_size": 16384, **size_presets()[name], **values})
