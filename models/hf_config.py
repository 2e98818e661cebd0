"""config.json as the Hugging Face configuration object that vLLM reads."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from panoserve.configs.model import MODEL_TYPE, ModelConfig

ATTENTION_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)


def padded_head_dim(head_dim: int) -> int:
    """The smallest head size that vLLM's attention kernels take and that holds `head_dim` (100 becomes 112)."""
    fitting = [size for size in ATTENTION_HEAD_SIZES if size >= head_dim]
    if not fitting:
        raise ValueError(f"head_dim {head_dim} is larger than any attention kernel takes ({ATTENTION_HEAD_SIZES[-1]})")
    return fitting[0]


class LlamaGenConfig(PretrainedConfig):
    """ModelConfig for vLLM, which sizes its KV cache from the *attention* heads.

    `streams` is 2 where the model has an unconditional branch (design.md 3: both guidance streams live in one
    request, as twice the heads), else 1; pass `streams=1` through hf_overrides to serve without guidance.
    `mrope_section` is declared only so that vLLM lets the model set its own positions (prefix rows are negative), and
    `projection_dim`, vLLM's name for the width of embedded inputs, so that a caption's rows arrive with those of the
    other stream beside them.
    """

    model_type = MODEL_TYPE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if "grid_side" in kwargs:  # transformers also builds an empty one, to compare with
            self.set_attention_heads(kwargs.get("streams"))

    def set_attention_heads(self, streams: int | None = None) -> None:
        """Derive what vLLM reads (heads, head_dim, positions) from the model's own shape."""
        shape = self.shape
        self.streams = streams or (2 if shape.unconditional else 1)
        self.model_heads = shape.num_attention_heads
        self.num_attention_heads = self.num_key_value_heads = self.streams * shape.num_attention_heads
        self.head_dim = padded_head_dim(shape.head_dim)
        self.max_position_embeddings = shape.max_prefix + shape.grid.codes + 1
        self.rope_parameters = {
            "rope_type": "default",
            "rope_theta": shape.rope_theta,
            "mrope_section": [shape.head_dim // 2, 0, 0],
        }
        self.tie_word_embeddings = False
        if shape.condition == "caption":
            self.projection_dim = self.streams * shape.hidden_size

    @property
    def shape(self) -> ModelConfig:
        """The model itself, with its own number of heads."""
        values = dict(vars(self))
        values["num_attention_heads"] = values.get("model_heads", values["num_attention_heads"])
        return ModelConfig.from_dict(values)
