"""Stage 8: train on, on crops that continue something: a tall picture below, a change of the prompt to the right.

    python -m panoserve.train.continuing WORK_DIR [--steps 500] [--workers 2]

Crops of the transformer stage have the horizon in its place and one time of day. A model that has seen nothing else
begins a second landscape below the first crop, and hardly follows a prompt that changes along the panorama. Here half
of the crops have given codes, as redirection gives them: rows above, from a tall scene, or columns to the left, from
before a change, with the caption of what comes after it. Only codes that are not given are predicted, so the model
learns nothing about how such crops begin, and pictures still begin with a sky.
Starts from WORK_DIR/transformer/state.pt, resumes from WORK_DIR/continuing/state.pt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panoserve.models.cleaning import clean_caption
from panoserve.train.captioner import tokenize
from panoserve.train.continuations import FIRST_SCENE, changing_specs
from panoserve.train.files import Progress, load_state, save_state
from panoserve.train.listening import labels
from panoserve.train.render import SCENES_A_SHARD
from panoserve.train.scenes import SceneSpec, sample_spec
from panoserve.train.scenes.captions import caption_of
from panoserve.train.transformer import MINI, Batch, CodeStore, TransformerRecipe, new_trainer
from panoserve.train.workers import run_workers

RECIPE = TransformerRecipe(phases=((1.0, 1, 8),), matrix_rate=0.01, other_rate=1e-3, text_rate=1e-4)
TALL, CHANGING = 2, 2  # crops of a step and process that continue a tall scene, a changing one
GIVEN = (4, 20)  # rows or columns of a crop that are given: fewest, most
POOL = 48  # captions drawn at a time, to find some of one length


class ContinuationStore:
    """The encoded tall and changing scenes of a folder."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("[0-9]*.npz"))
        if not paths:
            raise FileNotFoundError(
                f"no codes in {folder}; run `python -m panoserve.train.continuations {folder.parent}` first"
            )
        shards = [np.load(path) for path in paths]
        self.tall: NDArray[np.uint16] = np.concatenate([shard["tall"] for shard in shards])
        self.changing: NDArray[np.uint16] = np.concatenate([shard["changing"] for shard in shards])
        self.change: NDArray[np.uint16] = np.concatenate([shard["change"] for shard in shards])
        numbers = [int(path.stem) * SCENES_A_SHARD + i for path in paths for i in range(SCENES_A_SHARD)]
        self.scenes = [FIRST_SCENE + number for number in numbers]

    def tall_crop(self, rng: np.random.Generator, row: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """A crop [g, g] from below the first row of a tall scene, and which of its codes are given (rows)."""
        side, (rows, columns) = MINI.grid_side, self.tall.shape[1:]
        known = int(rng.integers(GIVEN[0], GIVEN[1] + 1))
        top = int(rng.integers(side - known, rows - side + 1))  # what is drawn is below the first crop
        left = int(rng.integers(columns - side + 1))
        given = np.zeros((side, side), bool)
        given[:known] = True
        return self.tall[row, top : top + side, left : left + side], given

    def changing_crop(self, rng: np.random.Generator, row: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """A crop [g, g] that begins before or in the change, and which of its codes are given (columns)."""
        side, columns = MINI.grid_side, self.changing.shape[2]
        first, last = (int(column) for column in self.change[row])
        known = int(rng.integers(GIVEN[0], GIVEN[1] + 1))
        border = rng.integers(first - 2, first + max(1, round(0.8 * (last - first))))  # drawn from here on
        left = int(np.clip(border - known, 0, columns - side))
        given = np.zeros((side, side), bool)
        given[:, :known] = True
        return self.changing[row, :, left : left + side], given

    def batch(self, rng: np.random.Generator, tokenizer: Any, length: int) -> Batch:
        """TALL crops and CHANGING crops, their captions all `length` tokens long."""
        codes, masks, ids, truths = [], [], [], []
        for count, crop, spec_of in (
            (TALL, self.tall_crop, sample_spec),
            (CHANGING, self.changing_crop, lambda scene: changing_specs(scene)[1]),
        ):
            for row, spec, tokens in self.captioned(rng, count, spec_of, tokenizer, length):
                picture, given = crop(rng, row)
                codes.append(picture.reshape(-1).astype(np.int64))
                masks.append(given.reshape(-1))
                ids.append(tokens)
                truths.append(labels(spec))
        return Batch(
            torch.from_numpy(np.stack(codes)), torch.tensor(ids), torch.tensor(truths), 0,
            torch.from_numpy(np.stack(masks)),
        )  # fmt: skip

    def captioned(
        self, rng: np.random.Generator, count: int, spec_of: Any, tokenizer: Any, length: int
    ) -> list[tuple[int, SceneSpec, list[int]]]:
        """`count` scenes (row, spec, token ids) with a caption of `length` tokens."""
        found: list[tuple[int, SceneSpec, list[int]]] = []
        while len(found) < count:
            rows = rng.integers(len(self.scenes), size=POOL)
            specs = [spec_of(self.scenes[row]) for row in rows]
            captions = [clean_caption(caption_of(spec, rng)) for spec in specs]
            tokens = tokenize(tokenizer, captions, MINI.caption_length)
            found += [(int(r), s, t) for r, s, t in zip(rows, specs, tokens, strict=True) if len(t) == length]
        return found[:count]


def joined(first: Batch, second: Batch) -> Batch:
    """The crops of both batches, `second` without strangers; captions must be of one length."""
    none = torch.zeros(first.codes.shape, dtype=torch.bool)
    assert second.given is not None and second.strangers == 0
    parts: list[tuple[Tensor, Tensor]] = [
        (first.codes, second.codes),
        (first.ids, second.ids),
        (first.labels, second.labels),
    ]
    codes, ids, truth = (torch.cat(pair) for pair in parts)
    return Batch(codes, ids, truth, first.strangers, torch.cat([none, second.given]))


def train(rank: int, work: Path, steps: int) -> None:
    """One process of the training run."""
    trainer = new_trainer(
        TransformerRecipe(steps, RECIPE.phases, RECIPE.matrix_rate, RECIPE.other_rate, RECIPE.text_rate)
    )
    path = work / "continuing" / "state.pt"
    if (state := load_state(path)) is not None:
        trainer.load(state)
    elif (state := load_state(work / "transformer" / "state.pt")) is not None:
        trainer.load(state)
        trainer.step = 0
    else:
        raise FileNotFoundError(f"no transformer in {work}; run `python -m panoserve.train.transformer {work}` first")
    torch.manual_seed(1000 * trainer.step + rank)
    scenes, continuations = CodeStore(work / "codes"), ContinuationStore(work / "continuations")
    progress = Progress(work / "continuing" / "log.jsonl")
    recent: list[dict[str, float]] = []
    crops = RECIPE.phases[0][2]
    while trainer.step < steps:
        rng = np.random.default_rng([15, trainer.step, rank])
        usual = scenes.batch(
            rng, crops - TALL - CHANGING, MINI.grid_side, trainer.tokenizer, MINI.caption_length,
            crops // RECIPE.strangers,
        )  # fmt: skip
        more = continuations.batch(rng, trainer.tokenizer, usual.ids.shape[1])
        recent = [*recent[-9:], trainer.train_step(joined(usual, more))]
        if rank == 0 and trainer.step % 10 == 0:
            progress.report(trainer.step, **{n: float(np.mean([losses[n] for losses in recent])) for n in recent[0]})
        if rank == 0 and (trainer.step % 20 == 0 or trainer.step == steps):
            save_state(path, trainer.state())


def main() -> None:
    parser = argparse.ArgumentParser(description="train the transformer on, on crops that continue something")
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args()
    run_workers(train, args.workers, args.work, args.steps)


if __name__ == "__main__":
    main()
