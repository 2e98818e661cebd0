"""What vLLM calls in every one of its processes (entry point vllm.general_plugins)."""

from __future__ import annotations


def register() -> None:
    """Make vLLM know `model_type: llamagen`. Safe to call more than once."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from panoserve.configs.model import CAPTION_ARCHITECTURE, CLASS_ARCHITECTURE, MODEL_TYPE
    from panoserve.models.hf_config import LlamaGenConfig

    AutoConfig.register(MODEL_TYPE, LlamaGenConfig, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for architecture in (CLASS_ARCHITECTURE, CAPTION_ARCHITECTURE):
        if architecture not in known:
            ModelRegistry.register_model(architecture, f"panoserve.models.llamagen:{architecture}")
