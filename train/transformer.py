"""Stage 6: train the transformer and its text encoder together, on the codes of random crops.

    python -m panoserve.train.transformer WORK_DIR [--steps N] [--workers 2]

A crop is a random 24-column window of a scene, so the model learns what the middle of a panorama looks like. The first
parts of the run predict patches of 4 x 4 and of 2 x 2 codes (npp.py). Beside the codes the model learns to keep in mind
what its caption says (listening.py). Matrices are trained by Muon, everything else by AdamW.
Resumes from WORK_DIR/transformer/state.pt.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from panoserve.configs.model import ModelConfig, SamplingDefaults
from panoserve.models.cleaning import clean_caption
from panoserve.models.reference import CaptionEmbedder, ReferenceModel
from panoserve.train.captioner import make_tokenizer, new_encoder, tokenize
from panoserve.train.fast import logits_of
from panoserve.train.files import Progress, load_state, save_state
from panoserve.train.listening import WEIGHT, Listener, RowFinder, labels
from panoserve.train.muon import Muon
from panoserve.train.npp import patch_losses, patch_states
from panoserve.train.precision import mixed, training_dtype
from panoserve.train.render import SCENES_A_SHARD
from panoserve.train.scenes import sample_spec
from panoserve.train.scenes.captions import caption_of
from panoserve.train.text_heads import open_text_heads
from panoserve.train.tokenizer import MINI_VQ, cosine_rate, load_tokenizer
from panoserve.train.workers import average_gradients, run_workers

MINI = ModelConfig(
    vocab_size=MINI_VQ.codebook_size,
    hidden_size=256,
    num_hidden_layers=9,
    num_attention_heads=4,
    intermediate_size=768,
    grid_side=24,
    downsample=MINI_VQ.downsample,
    condition="caption",
    caption_dim=192,
    caption_length=120,
    sampling=SamplingDefaults(guidance=4.0, temperature=1.0, top_k=0, top_p=0.95),
)


@dataclass(frozen=True, slots=True)
class TransformerRecipe:
    """How long and how fast. A *phase* is (share of the steps it ends at, patch side, crops a step and process)."""

    steps: int = 3000
    phases: tuple[tuple[float, int, int], ...] = ((0.07, 4, 64), (0.48, 2, 32), (1.0, 1, 8))
    matrix_rate: float = 0.03  # Muon
    other_rate: float = 3e-3  # AdamW
    text_rate: float = 3e-4  # AdamW, for the encoder and what embeds its features
    warm_up: int = 10
    weight_decay: float = 0.05
    condition_dropout: float = 0.1
    strangers: int = 8  # one crop in so many comes with the caption of another scene, for the listener alone

    def phase(self, step: int) -> tuple[int, int]:
        """(side of a patch, crops) of a step."""
        for end, patch, crops in self.phases:
            if step < end * self.steps:
                return patch, crops
        return self.phases[-1][1:]

    def begins_codes(self, step: int) -> bool:
        """Whether this is the first step on single codes, before which text heads are opened (text_heads.py)."""
        return self.phase(step)[0] == 1 and (step == 0 or self.phase(step - 1)[0] > 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops and captions of one step."""

    codes: Tensor  # int64 [B, side * side]
    ids: Tensor  # token ids of the captions, int64 [B, n]
    labels: Tensor  # what the captions' scenes have (listening.py), int64 [B, attributes]
    strangers: int  # so many crops, the first ones, are not what their captions say
    given: Tensor | None = None  # codes that the model knows and need not predict, bool [B, side * side]; None: none

    @property
    def lowered(self) -> Tensor:
        """Which crops begin below the first row of their scene (their first row is given): bool [B]."""
        assert self.given is not None
        return self.given[:, : math.isqrt(self.given.shape[1])].all(dim=1)


class CodeStore:
    """The encoded scenes of a folder."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("[0-9]*.npy"))
        if not paths:
            raise FileNotFoundError(
                f"no codes in {folder}; run `python -m panoserve.train.codes {folder.parent}` first"
            )
        self.codes: NDArray[np.uint16] = np.concatenate([np.load(path) for path in paths])  # [scenes, 24, columns]
        self.scenes = [int(path.stem) * SCENES_A_SHARD + i for path in paths for i in range(SCENES_A_SHARD)]

    def batch(
        self, rng: np.random.Generator, size: int, side: int, tokenizer: Any, limit: int, strangers: int = 0
    ) -> Batch:
        """Random crops with fresh captions, the first `strangers` of them with captions of other scenes.

        All captions of a batch have the same number n of tokens (n itself is random, as captions have it), so that
        nothing is padded: attention is then plain causal attention, with exactly the prefix that serving has.
        """
        rows = rng.integers(len(self.codes), size=4 * size)
        specs = [sample_spec(self.scenes[row]) for row in rows]
        ids = tokenize(tokenizer, [clean_caption(caption_of(spec, rng)) for spec in specs], limit)
        lengths = np.array([len(i) for i in ids])
        n = lengths[rng.integers(len(ids))]
        near = np.flatnonzero(lengths == n)
        chosen = near[np.arange(size) % len(near)]  # a rare length repeats its scenes, at other places
        shown = rows[chosen]
        shown[:strangers] = rng.integers(len(self.codes), size=strangers)
        lefts = rng.integers(0, self.codes.shape[2] - side + 1, size=size)
        crops = [self.codes[row, :, x : x + side].reshape(-1) for row, x in zip(shown, lefts, strict=True)]
        return Batch(
            torch.from_numpy(np.stack(crops).astype(np.int64)),
            torch.tensor([ids[i] for i in chosen]),
            torch.tensor([labels(specs[i]) for i in chosen]),
            strangers,
        )


class TransformerTrainer:
    """Transformer, text encoder, reader, listener and row finder, their optimisers, and the step they are at."""

    def __init__(self, config: ModelConfig, recipe: TransformerRecipe, tokenizer: Any, encoder: nn.Module) -> None:
        self.recipe, self.step, self.tokenizer, self.encoder = recipe, 0, tokenizer, encoder
        self.model = ReferenceModel(config)
        self.model.init_weights()
        self.reader, self.listener = Listener(config.hidden_size), Listener(config.hidden_size)
        self.row_finder = RowFinder(config.hidden_size, config.grid_side)
        parts = (self.model, self.encoder, self.reader, self.listener, self.row_finder)
        self.parameters = list({id(p): p for part in parts for p in part.parameters()}.values())
        matrices = [p for p in self.model.layers.parameters() if p.ndim == 2]
        # Muon moves a matrix equally far at any gradient: an encoder that can read forgets it within a hundred steps.
        text = [*self.encoder.parameters(), *self.model.cls_embedding.parameters()]
        apart = {id(p) for p in (*matrices, *text)}
        others = [p for p in self.parameters if id(p) not in apart]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay), recipe.matrix_rate)
        ]
        for group, rate in ((others, recipe.other_rate), (text, recipe.text_rate)):
            adam = torch.optim.AdamW(group, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
            self.optimizers.append((adam, rate))

    def prefix(self, ids: Tensor, dropped: Tensor) -> Tensor:
        """Embedded condition rows [B, n, D] of captions' token ids [B, n]; of no caption where dropped (bool [B])."""
        features = self.encode(ids)
        embedder = self.model.cls_embedding
        assert isinstance(embedder, CaptionEmbedder)
        nothing = embedder.uncond_embedding[-ids.shape[1] :].to(features.dtype)
        return embedder(torch.where(dropped[:, None, None], nothing[None], features))

    def encode(self, ids: Tensor) -> Tensor:
        """Caption features [B, n, caption_dim] of token ids [B, n]."""
        features: Tensor = self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return features

    @torch.no_grad()
    def open_text_heads(self, batch: Batch) -> None:
        """Measure on these crops which heads to open, and open them."""
        open_text_heads(self.model, batch.codes, self.model.cls_embedding(self.encode(batch.ids)))

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimisation step; the losses of codes (nats a code), of what was read and heard (nats an attribute), and
        of the row (nats).
        """
        dropped = torch.rand(len(batch.ids)) < self.recipe.condition_dropout
        dropped[: batch.strangers] = False
        patch = self.recipe.phase(self.step)[0]
        with mixed():
            prefix = self.prefix(batch.ids, dropped).to(training_dtype())
        states = patch_states(self.model, batch.codes, prefix, patch)
        own, told = slice(batch.strangers, None), ~dropped
        logits = logits_of(self.model, states[-1][own])
        given = None if batch.given is None else batch.given[own]
        code_loss = patch_losses(self.model, logits, batch.codes[own], patch, given).mean()
        read = self.reader.losses(prefix[told].mean(dim=1, keepdim=True), batch.labels[told])
        middle = states[len(states) // 2]
        heard = self.listener.losses(middle[told], batch.labels[told])
        row = self.row_finder.loss(middle if batch.given is None else middle[~batch.lowered], patch)
        loss = code_loss + WEIGHT * (read.mean() + heard.mean() + row)
        loss.backward()
        average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(self.step, self.recipe.steps, peak, self.recipe.warm_up)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss": code_loss.item(),
            "read": read.mean().item(),
            "heard": heard.mean().item(),
            "row": row.item(),
        }

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "encoder": self.encoder.state_dict(),
            "reader": self.reader.state_dict(),
            "listener": self.listener.state_dict(),
            "row_finder": self.row_finder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.encoder.load_state_dict(state["encoder"])
        self.reader.load_state_dict(state["reader"])
        self.listener.load_state_dict(state["listener"])
        self.row_finder.load_state_dict(state["row_finder"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


@torch.no_grad()
def start_from_codebook(model: ReferenceModel, codebook: Tensor, width: float = 3.0) -> None:
    """Give codes that look alike (near in `codebook` [V, code_dim], rows of length 1) like embeddings and like logits.

    Random Fourier features of the codebook: what is learnt about one code holds for its neighbours from the start.
    """
    dim = model.config.hidden_size
    phase = codebook @ (width * torch.randn(codebook.shape[1], dim)) + 2 * math.pi * torch.rand(dim)
    features = math.sqrt(2) * phase.cos()  # [V, D], variance 1
    model.tok_embeddings.weight.copy_(0.02 * features + 0.004 * torch.randn_like(features))
    model.output.weight.copy_(0.01 * features)


def trained(work: Path) -> dict[str, Any] | None:
    """The state of the last stage that trained a transformer in `work`, or None."""
    states = (load_state(work / stage / "state.pt") for stage in ("continuing", "transformer"))
    return next((state for state in states if state is not None), None)


def new_trainer(recipe: TransformerRecipe) -> TransformerTrainer:
    """The embedded model's trainer, untrained; the same weights on every call."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    encoder = new_encoder(len(tokenizer), MINI.caption_dim)
    return TransformerTrainer(MINI, recipe, tokenizer, encoder)


def train(rank: int, work: Path, steps: int) -> None:
    """One process of the training run."""
    recipe = TransformerRecipe(steps=steps)
    trainer = new_trainer(recipe)
    path = work / "transformer" / "state.pt"
    if (state := load_state(path)) is not None:
        trainer.load(state)
    else:
        codebook = load_tokenizer(work).quantize.codebook()
        start_from_codebook(trainer.model, nn.functional.normalize(codebook, dim=1))
        reading = load_state(work / "reading" / "state.pt")
        if reading is None:
            raise FileNotFoundError(
                f"no encoder that can read in {work}; run `python -m panoserve.train.reading {work}`"
            )
        trainer.encoder.load_state_dict(reading["encoder"])
        trainer.model.cls_embedding.load_state_dict(reading["embedder"])
        trainer.reader.load_state_dict(reading["reader"])
    torch.manual_seed(1000 * trainer.step + rank)
    store = CodeStore(work / "codes")
    progress = Progress(work / "transformer" / "log.jsonl")
    recent: list[dict[str, float]] = []
    while trainer.step < steps:
        patch, crops = recipe.phase(trainer.step)
        rng = np.random.default_rng([9, trainer.step, rank])
        if recipe.begins_codes(trainer.step):  # every process measures on the same crops
            same = np.random.default_rng([9, trainer.step])
            trainer.open_text_heads(store.batch(same, 16, MINI.grid_side, trainer.tokenizer, MINI.caption_length))
        strangers = crops // recipe.strangers
        batch = store.batch(rng, crops, MINI.grid_side, trainer.tokenizer, MINI.caption_length, strangers)
        recent = [*recent[-9:], trainer.train_step(batch)]
        if rank == 0 and trainer.step % 10 == 0:
            means = {name: float(np.mean([losses[name] for losses in recent])) for name in recent[0]}
            progress.report(trainer.step, **means, patch=patch)
        if trainer.step % 20 == 0:
            store = CodeStore(work / "codes")  # more may have been encoded meanwhile
            if rank == 0:
                save_state(path, trainer.state())
    if rank == 0:
        save_state(path, trainer.state())


def main() -> None:
    parser = argparse.ArgumentParser(description="train the transformer and the text encoder")
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=TransformerRecipe().steps)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args()
    run_workers(train, args.workers, args.work, args.steps)


if __name__ == "__main__":
    main()
