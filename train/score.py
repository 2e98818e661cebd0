"""Does a model follow its captions? Score held-out crops under captions that differ in one attribute.

    python -m panoserve.train.score WORK_DIR [--crops 72]

Every crop is scored under one caption for each value of the attribute; the likeliest one counts as the model's answer.
Pictures are read too kindly for that (docs/log.md): this number is the measure of a training run.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panoserve.models.cleaning import clean_caption
from panoserve.train.captioner import tokenize
from panoserve.train.codes import encode_scene
from panoserve.train.npp import patch_logits, patch_losses
from panoserve.train.precision import mixed, training_dtype
from panoserve.train.render import MARGIN, render_scene
from panoserve.train.scenes import sample_spec
from panoserve.train.scenes.spec import SceneSpec
from panoserve.train.tokenizer import load_tokenizer
from panoserve.train.transformer import MINI, TransformerRecipe, TransformerTrainer, new_trainer, trained

HELD_OUT = 1_000_000  # number of the first scene that no training run renders
CAPTIONS = {
    "feature": {
        "sea": "a sea",
        "lake": "a lake",
        "mountains": "mountains",
        "desert": "a desert",
        "forest": "a forest",
        "hills": "hills",
    },
    "time": {
        "dawn": "a landscape at dawn",
        "morning": "a landscape in the morning",
        "noon": "a landscape at noon",
        "sunset": "a landscape at sunset",
        "dusk": "a landscape at dusk",
        "night": "a landscape at night",
    },
}


@dataclass(frozen=True, slots=True)
class Score:
    """How often the likeliest caption was the right one, and what the right one is worth (nats a crop).

    `worth` is the mean log likelihood of a crop under its right caption minus that under the mean of the wrong ones.
    """

    attribute: str
    right: float
    worth: float
    crops: int


def held_out_crops(work: Path, count: int) -> tuple[Tensor, list[SceneSpec]]:
    """Codes int64 [count, side * side] of one crop of each of the first `count` held-out scenes, and their specs."""
    tokenizer = load_tokenizer(work)
    crops, specs = [], []
    for scene in range(HELD_OUT, HELD_OUT + count):
        codes = encode_scene(tokenizer, render_scene(scene, MARGIN), scene)
        left = int(np.random.default_rng([6, scene]).integers(codes.shape[1] - MINI.grid_side + 1))
        crops.append(codes[:, left : left + MINI.grid_side].reshape(-1).astype(np.int64))
        specs.append(sample_spec(scene))
    return torch.from_numpy(np.stack(crops)), specs


@torch.no_grad()
def likelihoods(trainer: TransformerTrainer, crops: Tensor, captions: list[str], size: int = 12) -> Tensor:
    """Log likelihood (nats) of every crop [B, N] under every caption: float32 [B, captions]."""
    columns = []
    for ids in tokenize(trainer.tokenizer, [clean_caption(caption) for caption in captions], MINI.caption_length):
        with mixed():
            prefix = trainer.model.cls_embedding(trainer.encode(torch.tensor([ids]))).to(training_dtype())
        parts = [
            patch_losses(trainer.model, patch_logits(trainer.model, some, prefix.expand(len(some), -1, -1), 1), some, 1)
            for some in crops.split(size)
        ]
        columns.append(-torch.cat(parts) * crops.shape[1])
    return torch.stack(columns, dim=1)


def score(trainer: TransformerTrainer, crops: Tensor, specs: list[SceneSpec], attribute: str) -> Score:
    """How well the model tells the values of an attribute apart."""
    values = list(CAPTIONS[attribute])
    found = likelihoods(trainer, crops, list(CAPTIONS[attribute].values()))
    truth = torch.tensor([values.index(getattr(spec, attribute)) for spec in specs])
    own = found.gather(1, truth[:, None])[:, 0]
    wrong = (found.sum(dim=1) - own) / (len(values) - 1)
    return Score(
        attribute, float((found.argmax(dim=1) == truth).float().mean()), float((own - wrong).mean()), len(specs)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="score how a trained transformer follows captions")
    parser.add_argument("work", type=Path)
    parser.add_argument("--crops", type=int, default=72)
    args = parser.parse_args()
    state = trained(args.work)
    if state is None:
        raise SystemExit(
            f"no transformer in {args.work}; run `python -m panoserve.train.transformer {args.work}` first"
        )
    trainer = new_trainer(TransformerRecipe())
    trainer.load(state)
    crops, specs = held_out_crops(args.work, args.crops)
    for attribute, captions in CAPTIONS.items():
        result = score(trainer, crops, specs, attribute)
        print(
            f"{attribute}: {result.right:.0%} of {result.crops} crops right (chance {1 / len(captions):.0%}), "
            f"the right caption is worth {result.worth:.2f} nats a crop",
            flush=True,
        )


if __name__ == "__main__":
    main()
