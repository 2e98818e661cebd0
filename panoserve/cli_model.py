"""`panoserve info` and `panoserve convert`: what a model folder holds, and how one is made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import panoserve
from panoserve.errors import ModelFolderError

if TYPE_CHECKING:
    from panoserve.serve.folder import ModelFolder


def default_model() -> Path:
    """The embedded model of the checkout. Raises ModelFolderError where there is none (an installed wheel)."""
    folder = Path(panoserve.__file__).resolve().parent.parent / "assets" / "pano-mini"
    if not folder.is_dir():
        raise ModelFolderError(
            "no --model was given, and there is no assets/pano-mini beside this installation (only a checkout has it); "
            "name a folder written by `panoserve convert`: --model DIR"
        )
    return folder


def open_folder(path: Path | None) -> ModelFolder:
    """The model folder asked for, or the embedded one. Raises ModelFolderError."""
    from panoserve.serve.folder import ModelFolder

    return ModelFolder(path if path is not None else default_model())


def describe(folder: ModelFolder) -> dict[str, Any]:
    """What `panoserve info` says, as one flat JSON object."""
    config = folder.config
    condition: dict[str, Any] = (
        {"num_classes": config.num_classes}
        if config.condition == "class"
        else {"caption_dim": config.caption_dim, "caption_length": config.caption_length}
    )
    return {
        "model": folder.path.name,
        "kind": f"{config.condition}-conditional",
        "parameters": folder.parameters,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "codebook": config.vocab_size,
        **condition,
        "grid": config.grid_side,
        "downsample": config.downsample,
        "crop_pixels": config.grid.crop_pixels,
        "default_stride": config.grid.default_stride,
        "guidance": config.sampling.guidance,
        "temperature": config.sampling.temperature,
        "top_k": config.sampling.top_k,
        "top_p": config.sampling.top_p,
        "unconditional": config.unconditional,
        "vq": folder.has_vq,
        "text_encoder": folder.has_text_encoder,
    }


def info(arguments: argparse.Namespace) -> int:
    values = describe(open_folder(arguments.model))
    if arguments.json:
        print(json.dumps(values))
        return 0
    for name, value in table(values):
        print(f"{name:<11} {value}")
    return 0


def table(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for a reader."""
    crop, step = values["crop_pixels"], values["downsample"]
    limit = (
        f"{values['num_classes']} classes" if "num_classes" in values else f"up to {values['caption_length']} tokens"
    )
    shape = f"{values['layers']} layers, width {values['width']}, {values['heads']} heads"
    sampling = (f"{name} {values[name]:g}" for name in ("guidance", "temperature", "top_k", "top_p"))
    return [
        ("model", values["model"]),
        ("kind", f"{values['kind']}, {limit}"),
        ("parameters", f"{values['parameters'] / 1e6:,.1f} million ({shape})"),
        ("codebook", f"{values['codebook']:,} codes"),
        ("token grid", f"{values['grid']} x {values['grid']} codes of {step} x {step} pixels"),
        ("one crop", f"{crop} x {crop} pixels; a picture's sides are multiples of {step}"),
        ("stride", f"{values['default_stride']} by default, 1 to {values['grid']}"),
        ("sampling", ", ".join(sampling)),
        ("guidance", "possible" if values["unconditional"] else "not possible: no unconditional branch"),
        ("pictures", "yes" if values["vq"] else "no vq/ in the folder: codes only (--no-decode)"),
        ("prompts", "yes" if values["text_encoder"] else "no text_encoder/ in the folder: --label or --features"),
    ]


def convert(arguments: argparse.Namespace) -> int:
    from panoserve.convert import convert_llamagen

    convert_llamagen(
        arguments.checkpoint,
        arguments.output,
        vq=arguments.vq,
        text_encoder=arguments.text_encoder,
        grid=arguments.grid,
        heads=arguments.heads,
        downsample=arguments.downsample,
        null_class=not arguments.no_null_class,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
    )
    print(f"wrote {arguments.output}; look at it with: panoserve info --model {arguments.output}")
    return 0
