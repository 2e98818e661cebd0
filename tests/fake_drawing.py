"""A model folder of a few bytes and an engine that draws nothing, for tests of the command line around them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from vq_weights import TINY_VQ, filled_vq

from panoserve.cli import main
from panoserve.configs.model import ModelConfig
from panoserve.vq.model import VQModel

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "grid_side": 4,
    "downsample": 8,
}
Run = Callable[..., tuple[int, str, str]]  # what the fixture `run` gives
CLASS = ModelConfig(**SHAPE, condition="class", num_classes=10)
CAPTION = ModelConfig(**SHAPE, condition="caption", caption_dim=6, caption_length=5)


def write_folder(path: Path, config: ModelConfig, *, vq: bool = True, text_encoder: bool = True) -> Path:
    """A folder that looks like a model's from outside; its one weight has 12 numbers."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file({"weight": torch.zeros(3, 4)}, path / "model.safetensors")
    for name, present in (("vq", vq), ("text_encoder", text_encoder)):
        if present:
            (path / name).mkdir()
            (path / name / "config.json").write_text("{}")
            save_file({"weight": torch.zeros(2)}, path / name / "model.safetensors")
    return path


class FakeEngine:
    """Stands for panoserve.Engine: resolves the request as the real one does, and draws its seed in every code."""

    started: ClassVar[list[dict[str, Any]]] = []
    raises: BaseException | None = None
    truncates = False

    def __init__(self, model_dir: Path, **settings: Any) -> None:
        self.config = ModelConfig.load(model_dir)
        self.context = settings["context"]
        FakeEngine.started.append({"model_dir": model_dir, "requests": [], **settings})
        os.write(1, b"noise that a C++ library prints on file descriptor 1\n")
        print("noise that a Python library prints on sys.stdout")

    @cached_property
    def vq(self) -> VQModel:
        """A real tokenizer of the model's kind, with random weights."""
        config = replace(TINY_VQ, channel_multipliers=(1, 1, 1, 1), codebook_size=self.config.vocab_size)
        assert config.downsample == self.config.grid.downsample
        return filled_vq(config)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def generate(self, requests: list[Any], decode: bool = True, progress: bool = True) -> list[Any]:
        from panoserve import Panorama
        from panoserve.serve.request import PanoramaStats

        if FakeEngine.raises is not None:
            raise FakeEngine.raises
        panoramas = []
        for request in requests:
            resolved = request.resolve(self.config, self.context)
            FakeEngine.started[-1]["requests"].append(resolved)
            canvas = self.config.grid.canvas_of(resolved.width, resolved.height)
            codes = torch.full((canvas.rows, canvas.columns), resolved.seed % self.config.vocab_size)
            image = Image.new("RGB", (resolved.width, resolved.height), (resolved.seed % 256, 2, 3)) if decode else None
            stats = PanoramaStats(7, canvas.codes, forward_tokens=9, copied_slots=4, lanes=2, seconds=0.5)
            panoramas.append(
                Panorama(codes=codes, image=image, stats=stats, request=resolved, truncated=FakeEngine.truncates)
            )
        return panoramas


def run_command(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command of the command line in this process; returns (exit code, stdout, stderr)."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = int(exit.code or 0)
    out, err = capfd.readouterr()
    return code, out, err
