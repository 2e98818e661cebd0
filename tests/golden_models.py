"""The tiny models of the golden vectors, as configuration and reference model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

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


def random_model(config: ModelConfig, seed: int = 0, std: float = 0.25) -> ReferenceModel:
    """A reference model with weights large enough that greedy choices are far apart."""
    model = ReferenceModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def write_folder(model: ReferenceModel, folder: Path) -> Path:
    """A model folder (transformer only) that the engine can serve."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder
