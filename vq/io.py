"""Read and write the `vq/` part of a model folder: config.json and model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from panoserve.checkpoint import write_safetensors
from panoserve.errors import ModelFolderError
from panoserve.vq.config import VQConfig
from panoserve.vq.model import VQModel

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def load_vq(folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> VQModel:
    """The tokenizer in `folder`, in evaluation mode, channels_last, without gradients.

    dtype: of the decoder. Encoder and codebook are float32 whatever it is, so that a picture's codes do not depend on
    it. Raises ModelFolderError saying what is missing, unexpected or mis-shaped.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ModelFolderError(
                f"{folder} holds no {name}; expected a tokenizer folder written by `panoserve convert`"
            )
    try:
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{folder / CONFIG_NAME} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelFolderError(f"{folder / CONFIG_NAME} holds {type(values).__name__}, expected an object")
    with torch.device("meta"):
        model = VQModel(VQConfig.from_dict(values))
    try:
        state = load_file(folder / WEIGHTS_NAME, device=str(device))
        model.load_state_dict(state, strict=True, assign=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelFolderError(f"{folder / WEIGHTS_NAME} does not fit its {CONFIG_NAME}: {reason}") from None
    model = model.float().eval().requires_grad_(False)
    for part in (model.post_quant_conv, model.decoder):
        part.to(dtype)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def save_vq(model: VQModel, folder: Path | str) -> None:
    """Write config.json and model.safetensors into `folder` (created if missing), each complete or not at all.

    Raises CheckpointError if a weight is NaN or infinite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    weights, config = folder / f"{WEIGHTS_NAME}.tmp", folder / f"{CONFIG_NAME}.tmp"
    write_safetensors(weights, state)
    config.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    os.replace(weights, folder / WEIGHTS_NAME)
    os.replace(config, folder / CONFIG_NAME)
