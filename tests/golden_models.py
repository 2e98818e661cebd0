"""The tiny models of the golden vectors, as configuration and reference model."""

from __future__ import annotations

from typing import Any

from panoserve.configs.model import ModelConfig, ffn_width
from panoserve.models.reference import ReferenceModel


def golden_config(case: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of one golden case (c2i, t2i or npp)."""
    cfg = case["cfg"]
    common = {
        "vocab_size": cfg["vocab"],
        "hidden_size": cfg["dim"],
        "num_hidden_layers": cfg["n_layer"],
        "num_attention_heads": cfg["n_head"],
        "intermediate_size": ffn_width(cfg["dim"]),
        "grid_side": cfg["g"],
        "downsample": 16,
    }
    if "caption_dim" in cfg:
        return ModelConfig(**common, condition="caption", caption_dim=cfg["caption_dim"], caption_length=cfg["T"])
    return ModelConfig(
        **common, condition="class", num_classes=cfg["classes"], unconditional=not cfg.get("no_null_row", False)
    )


def golden_model(case: dict[str, Any]) -> ReferenceModel:
    """The reference model with the golden case's weights."""
    model = ReferenceModel(golden_config(case)).eval()
    model.load_state_dict(case["sd"])
    return model
