"""Stage 5: teach the text encoder to read, before there are pictures.

    python -m panoserve.train.reading WORK_DIR [--captions 48000]

Text heads see the mean of the condition rows (their keys are all alike), so what a caption says must be in that mean.
Left to the loss of the codes, the encoder learns the time of day, which the first code needs, and never the feature
(docs/log.md). Here a `Listener` names every attribute of the caption's scene from the mean of its embedded rows; it
costs minutes, since captions are short. The transformer's training goes on asking the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panoserve.models.cleaning import clean_caption
from panoserve.train.captioner import tokenize
from panoserve.train.files import Progress, save_state
from panoserve.train.listening import ATTRIBUTES, Listener, labels
from panoserve.train.scenes import sample_spec
from panoserve.train.scenes.captions import caption_of
from panoserve.train.transformer import MINI, TransformerRecipe, new_trainer

DRAWN_AT_ONCE = 4000  # captions, from which batches of one length are made
BATCH = 64
RATE, WARM_UP = 1e-3, 20


def caption_batches(
    rng: np.random.Generator, captions: int, tokenizer: Any, limit: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids [B, n] and labels [B, attributes] of at least `captions` captions of random scenes, B <= BATCH."""
    for _ in range(-(-captions // DRAWN_AT_ONCE)):
        specs = [sample_spec(int(seed)) for seed in rng.integers(1_000_000, size=DRAWN_AT_ONCE)]
        ids = tokenize(tokenizer, [clean_caption(caption_of(spec, rng)) for spec in specs], limit)
        lengths = np.array([len(i) for i in ids])
        alike = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        batches = [part for some in alike for part in np.array_split(some, -(-len(some) // BATCH))]
        for index in rng.permutation(len(batches)):
            chosen = batches[index]
            yield torch.tensor([ids[i] for i in chosen]), torch.tensor([labels(specs[i]) for i in chosen])


def learn_to_read(
    encoder: nn.Module, embedder: nn.Module, reader: Listener, batches: list[tuple[Tensor, Tensor]], progress: Progress
) -> None:
    """Train encoder, embedder and reader together, one pass over the batches; the rate falls to a tenth."""
    parameters = [*encoder.parameters(), *embedder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    recent: list[Tensor] = []
    for step, (ids, truth) in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / WARM_UP) * (1 - 0.9 * step / len(batches))
        features = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        losses = reader.losses(embedder(features).mean(dim=1, keepdim=True), truth)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent = [*recent[-24:], losses.detach()]
        if step % 25 == 0 or step == len(batches):
            progress.report(step, **dict(zip(ATTRIBUTES, torch.stack(recent).mean(dim=0).tolist(), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description="teach the text encoder to read captions")
    parser.add_argument("work", type=Path)
    parser.add_argument("--captions", type=int, default=48_000)
    args = parser.parse_args()
    trainer = new_trainer(TransformerRecipe())
    batches = list(caption_batches(np.random.default_rng(20), args.captions, trainer.tokenizer, MINI.caption_length))
    embedder = trainer.model.cls_embedding
    learn_to_read(trainer.encoder, embedder, trainer.reader, batches, Progress(args.work / "reading" / "log.jsonl"))
    parts = {"encoder": trainer.encoder, "embedder": embedder, "reader": trainer.reader}
    save_state(args.work / "reading" / "state.pt", {name: part.state_dict() for name, part in parts.items()})


if __name__ == "__main__":
    main()
