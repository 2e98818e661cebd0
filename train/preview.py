"""Draw panoramas from a model folder in plain PyTorch: slow, simple, and without vLLM.

    python -m panoserve.train.preview MODEL_DIR OUT.png "prompt" ["prompt" ...] [--columns 96] [--stride 12]

Each crop knows the overlap columns of the one before it, fed in raster order among the codes that it samples
(context "recompute"); one row of the picture a prompt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from panoserve.configs.model import ModelConfig, SamplingDefaults
from panoserve.models.reference import CaptionEmbedder, ReferenceLane, ReferenceModel
from panoserve.models.text import TextEncoder
from panoserve.vq.images import to_pil
from panoserve.vq.io import load_vq


def sample(logits: Tensor, sampling: SamplingDefaults, generator: torch.Generator) -> int:
    """One code from logits [2, V] (conditional, unconditional): guidance, temperature, top-k, top-p (facts.md 1.8)."""
    mixed = logits[1] + sampling.guidance * (logits[0] - logits[1])
    mixed = mixed / max(sampling.temperature, 1e-5)
    if 0 < sampling.top_k < len(mixed):
        mixed = mixed.masked_fill(mixed < mixed.topk(sampling.top_k).values[-1], -torch.inf)
    order = mixed.softmax(dim=0).sort(descending=True)
    keep = order.values.cumsum(0) - order.values <= sampling.top_p
    chosen = torch.multinomial(order.values * keep, 1, generator=generator)
    return int(order.indices[chosen])


def draw_crop(
    model: ReferenceModel, prefix: Tensor, known: Tensor, sampling: SamplingDefaults, generator: torch.Generator
) -> Tensor:
    """Codes [g, g]; `known` [g, g] holds the given codes and -1 elsewhere."""
    lane = ReferenceLane(model, prefix)
    flat = known.flatten().tolist()
    waiting: list[int] = []  # codes not fed yet
    for index, code in enumerate(flat):
        if code < 0:
            flat[index] = sample(lane.feed(waiting), sampling, generator)
            waiting = []
        waiting.append(flat[index])
    return torch.tensor(flat).view_as(known)


@torch.inference_mode()
def draw_panorama(
    model: ReferenceModel, features: Tensor, columns: int, stride: int, sampling: SamplingDefaults, seed: int
) -> Tensor:
    """Codes [g, columns] of a panorama one crop high, for caption features [n, caption_dim]."""
    side = model.config.grid_side
    embedder = model.cls_embedding
    assert isinstance(embedder, CaptionEmbedder)
    prefix = torch.cat([embedder(features[None]), embedder.unconditional(len(features))])
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.full((side, columns), -1)
    left = 0
    while True:
        canvas[:, left : left + side] = draw_crop(model, prefix, canvas[:, left : left + side], sampling, generator)
        if left + side >= columns:
            return canvas
        left = min(left + stride, columns - side)


def load_transformer(folder: Path) -> ReferenceModel:
    """The transformer of a model folder, float32."""
    model = ReferenceModel(ModelConfig.load(folder))
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="draw panoramas in plain PyTorch")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--columns", type=int, default=96)
    parser.add_argument("--stride", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in (("guidance", float), ("temperature", float), ("top-k", int), ("top-p", float)):
        parser.add_argument(f"--{name}", type=kind)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_transformer(args.model_dir)
    given = {n: getattr(args, n) for n in ("guidance", "temperature", "top_k", "top_p") if getattr(args, n) is not None}
    sampling = SamplingDefaults(
        **{**{n: getattr(model.config.sampling, n) for n in ("guidance", "temperature", "top_k", "top_p")}, **given}
    )
    encoder = TextEncoder(args.model_dir / "text_encoder", model.config.caption_length, torch.float32)
    vq = load_vq(args.model_dir / "vq")
    rows = []
    with torch.inference_mode():
        for text in encoder.encode(args.prompts):
            codes = draw_panorama(model, text.features, args.columns, args.stride, sampling, args.seed)
            rows.append(vq.decode(codes[None])[0])
    to_pil(torch.cat(rows, dim=1)).save(args.out)


if __name__ == "__main__":
    main()
