"""What vLLM calls in every one of its processes (entry point vllm.general_plugins)."""

from __future__ import annotations


def register() -> None:
    """Make vLLM know `model_type: llamagen`. Safe to call more than once."""
    import torch
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from panoserve.configs.model import CAPTION_ARCHITECTURE, CLASS_ARCHITECTURE, MODEL_TYPE
    from panoserve.kernels.vector_math import settle_vector_math
    from panoserve.models.hf_config import LlamaGenConfig

    # vLLM's attention uses AMX tiles where the processor has them, but leaves it to other libraries to ask Linux for
    # the permission; with a small model none of them does, and the first step dies of an illegal instruction.
    torch.cpu._init_amx()
    settle_vector_math()
    AutoConfig.register(MODEL_TYPE, LlamaGenConfig, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for architecture in (CLASS_ARCHITECTURE, CAPTION_ARCHITECTURE):
        if architecture not in known:
            ModelRegistry.register_model(architecture, f"panoserve.models.llamagen:{architecture}")
