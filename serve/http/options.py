"""What a server can be asked for, as JSON: sizes, ranges, defaults. The page builds its form from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from panoserve.configs.model import ModelConfig
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.http.fields import FORMAT_SIDES
from panoserve.serve.http.settings import MAX_IMAGES, HttpSettings
from panoserve.serve.request import DEFAULT_CROPS_WIDE, MAX_GUIDANCE, MAX_TEMPERATURE


def options_of(config: ModelConfig, settings: HttpSettings, model: str) -> dict[str, Any]:
    """The answer of GET /v1/images/options. Sizes are in pixels, strides in codes."""
    grid, crop = config.grid, config.grid.crop_pixels
    return {
        "model": model,
        "condition": config.condition,
        "classes": config.num_classes,
        "size": {
            "step": grid.downsample,
            "crop": crop,
            "default": f"{DEFAULT_CROPS_WIDE * crop}x{crop}",
            "max_codes": settings.max_queue_codes,
        },
        "stride": {"min": 1, "max": grid.side, "default": grid.default_stride},
        "guidance": {"available": config.unconditional, "max": MAX_GUIDANCE},
        "temperature": {"max": MAX_TEMPERATURE},
        "top_k": {"max": config.vocab_size},
        "defaults": asdict(config.sampling) | {"context": settings.context},
        "contexts": list(CONTEXTS),
        "output_formats": FORMAT_SIDES,
        "n": {"max": MAX_IMAGES},
    }
