"""Stage 10: write the model folder that everything else reads.

python -m panoserve.train.export WORK_DIR MODEL_DIR
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from panoserve.configs.model import ModelConfig, SamplingDefaults
from panoserve.train.captioner import save_text_encoder
from panoserve.train.files import load_state, write_whole
from panoserve.train.tokenizer import MINI_VQ
from panoserve.train.transformer import MINI, TransformerRecipe, new_trainer, trained
from panoserve.vq.config import VQConfig


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float16, which every loader casts to its own dtype."""
    return {name: value.detach().to(torch.float16).contiguous() for name, value in weights.items()}


def export_model(
    folder: Path,
    config: ModelConfig,
    transformer: dict[str, Tensor],
    vq_config: VQConfig,
    vq: dict[str, Tensor],
    encoder: Any,
    tokenizer: Any,
) -> None:
    """Write config.json, model.safetensors, vq/ and text_encoder/ into `folder`."""
    for target, values, weights in (
        (folder, config.to_dict(), transformer),
        (folder / "vq", vq_config.to_dict(), vq),
    ):
        text = json.dumps(values, indent=2) + "\n"
        write_whole(target / "config.json", lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        write_whole(target / "model.safetensors", lambda path, weights=weights: save_file(half(weights), path))  # type: ignore[misc]
    save_text_encoder(encoder, tokenizer, folder / "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description="write the trained model as a model folder")
    parser.add_argument("work", type=Path)
    parser.add_argument("model_dir", type=Path)
    for name, kind in (("guidance", float), ("temperature", float), ("top-k", int), ("top-p", float)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(MINI.sampling, name.replace("-", "_")))
    args = parser.parse_args()
    states = {"sharpening": load_state(args.work / "sharpening" / "state.pt"), "transformer": trained(args.work)}
    for part, state in states.items():
        if state is None:
            raise SystemExit(
                f"{args.work / part} holds no state.pt; run `python -m panoserve.train.{part} {args.work}` first"
            )
    trainer = new_trainer(TransformerRecipe())
    trainer.load(states["transformer"])  # type: ignore[arg-type]
    sampling = SamplingDefaults(args.guidance, args.temperature, args.top_k, args.top_p)
    export_model(
        args.model_dir,
        replace(MINI, sampling=sampling),
        trainer.model.state_dict(),
        MINI_VQ,
        states["sharpening"]["model"],  # type: ignore[index]
        trainer.encoder,
        trainer.tokenizer,
    )
    size = sum(path.stat().st_size for path in args.model_dir.rglob("*") if path.is_file())
    print(f"{args.model_dir}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
