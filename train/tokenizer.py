"""Stage 2: train the VQ tokenizer on windows of the rendered scenes.

    python -m panoserve.train.tokenizer WORK_DIR [--steps N] [--workers 2]

Windows are full-height, because GroupNorm takes its statistics over the whole picture and a panorama is full-height
everywhere. The first steps train a plain autoencoder; the codebook then starts from its latents, and entries that
stay unused are moved onto fresh latents. Resumes from WORK_DIR/tokenizer/state.pt.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoserve.train.files import Progress, load_state, save_state
from panoserve.train.muon import Muon
from panoserve.train.precision import mixed
from panoserve.train.render import SceneStore
from panoserve.train.workers import average_gradients, gather_rows, run_workers, share, total
from panoserve.vq.config import VQConfig
from panoserve.vq.model import VQModel

MINI_VQ = VQConfig(
    channels=16,
    channel_multipliers=(1, 2, 4, 8),
    num_res_blocks=1,
    z_channels=64,
    codebook_size=1024,
    code_dim=8,
    norm_groups=1,  # more would be almost instance norm at this width, which loses the colour of the whole picture
)


@dataclass(frozen=True, slots=True)
class TokenizerRecipe:
    """How long and how fast. A *phase* is (share of the steps it ends at, windows a step and process, pixels wide)."""

    steps: int = 2400
    matrix_rate: float = 0.02  # Muon
    other_rate: float = 1.5e-3  # Adam
    warm_up: int = 30
    continuous_steps: int = 300  # before the codebook exists
    revive_every: int = 50
    phases: tuple[tuple[float, int, int], ...] = ((0.85, 3, 128), (1.0, 1, 384))

    def phase(self, step: int) -> tuple[int, int]:
        """(windows, pixels wide) of a step."""
        for end, windows, width in self.phases:
            if step < end * self.steps:
                return windows, width
        return self.phases[-1][1:]


def cosine_rate(step: int, steps: int, peak: float, warm_up: int, floor: float = 0.03) -> float:
    """Linear warm-up to `peak`, then a half cosine down to floor * peak at the last step."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


class Float32GroupNorm(nn.GroupNorm):
    """GroupNorm outside autocast: its bfloat16 backward is four times slower than float32 on the CPU (torch 2.13)."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


def speed_up_norms(model: nn.Module) -> None:
    """Run every GroupNorm of `model` in float32 from now on; parameters stay where they are."""
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = Float32GroupNorm


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of the picture, of coarser versions of it (colour areas), and of its slopes (edges)."""
    loss = F.l1_loss(made, wanted) + 2.0 * _slopes(made, wanted)
    for _ in range(3):
        made, wanted = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
        loss = loss + 0.7 * F.l1_loss(made, wanted) + 0.7 * _slopes(made, wanted)
    return loss


def _slopes(made: Tensor, wanted: Tensor) -> Tensor:
    error = made - wanted
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def continuous_forward(model: VQModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct without the codebook: (pictures, normalised latents [n, code_dim])."""
    latents = F.normalize(model.encode_latents(images).float(), dim=1)
    return model.decode_latents(latents), latents.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def start_codebook(model: VQModel, latents: Tensor, rounds: int = 8) -> None:
    """Spherical k-means on `latents` [n, code_dim], from random rows of them."""
    size = model.config.codebook_size
    centers = latents[torch.randint(len(latents), (size,))]
    for _ in range(rounds):
        nearest = (latents @ centers.T).argmax(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, latents)
        counts = torch.bincount(nearest, minlength=size)
        spare = latents[torch.randint(len(latents), (size,))]
        centers = F.normalize(torch.where((counts > 0)[:, None], sums, spare), dim=1)
    model.quantize.embedding.weight.copy_(share(centers))


@torch.no_grad()
def revive_codes(model: VQModel, counts: Tensor, latents: Tensor) -> int:
    """Move entries that `counts` [codebook_size] says were unused onto random `latents`; returns how many."""
    dead = (counts == 0).nonzero().flatten()
    if len(dead):
        fresh = latents[torch.randint(len(latents), (len(dead),))]
        model.quantize.embedding.weight[dead] = share(F.normalize(fresh + 0.02 * torch.randn_like(fresh), dim=1))
    return len(dead)


def make_optimizers(
    model: nn.Module, matrix_rate: float, other_rate: float
) -> list[tuple[torch.optim.Optimizer, float]]:
    """(optimiser, peak rate) pairs: Muon for hidden convolutions, Adam for first and last ones, norms and biases."""
    hidden = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d) and min(m.weight.shape[:2]) > 8}
    matrices = [p for p in model.parameters() if id(p) in hidden]
    others = [p for p in model.parameters() if id(p) not in hidden]
    muon, adam = Muon(matrices, lr=matrix_rate), torch.optim.Adam(others, lr=other_rate, betas=(0.9, 0.98), fused=True)
    return [(muon, matrix_rate), (adam, other_rate)]


class TokenizerTrainer:
    """One VQ model, its optimiser, and the step they are at."""

    def __init__(self, config: VQConfig, recipe: TokenizerRecipe) -> None:
        self.recipe, self.step = recipe, 0
        self.model = VQModel(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        speed_up_norms(self.model)
        self.optimizers = make_optimizers(self.model, recipe.matrix_rate, recipe.other_rate)
        self.counts = torch.zeros(config.codebook_size, dtype=torch.long)
        self.recent: list[Tensor] = []  # latents of the last steps [n, code_dim]

    def train_step(self, images: Tensor) -> dict[str, float]:
        """One optimisation step on pictures [B, 3, H, W]; returns the losses."""
        r = self.recipe
        continuous = self.step < r.continuous_steps
        if self.step == r.continuous_steps and self.recent:
            start_codebook(self.model, gather_rows(torch.cat(self.recent)))
        with mixed():
            if continuous:
                made, latents = continuous_forward(self.model, images)
                code_loss = torch.zeros(())
            else:
                unquantised = self.model.encode_latents(images)
                quantised = self.model.quantize(unquantised)
                made, code_loss = self.model.decode_latents(quantised.latents), quantised.loss
                latents = F.normalize(unquantised.detach().float(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
                self.counts += torch.bincount(quantised.codes.flatten(), minlength=len(self.counts))
        picture_loss = reconstruction_loss(made.float(), images)
        (picture_loss + code_loss).backward()
        average_gradients(self.model.parameters())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(self.step, r.steps, peak, r.warm_up)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.recent = [*self.recent[-80:], latents.detach()]
        self.step += 1
        report = {
            "loss": picture_loss.item(),
            "code_loss": code_loss.item(),
            "l1": F.l1_loss(made.detach(), images).item(),
        }
        if not continuous and self.step % r.revive_every == 0:
            total(self.counts)
            report["used"] = (self.counts > 0).float().mean().item()
            if self.step < 0.8 * r.steps:
                revive_codes(self.model, self.counts, torch.cat(self.recent))
            self.counts.zero_()
        return report

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def load_tokenizer(work: Path) -> VQModel:
    """The tokenizer trained in the folder `work`, for encoding."""
    state = load_state(work / "tokenizer" / "state.pt")
    if state is None:
        raise FileNotFoundError(f"no tokenizer in {work}; run `python -m panoserve.train.tokenizer {work}` first")
    model = VQModel(MINI_VQ).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    model.load_state_dict(state["model"])
    return model


def train(rank: int, work: Path, steps: int) -> None:
    """One process of the training run."""
    torch.manual_seed(0)
    trainer = TokenizerTrainer(MINI_VQ, TokenizerRecipe(steps=steps))
    torch.manual_seed(rank)
    path = work / "tokenizer" / "state.pt"
    if (state := load_state(path)) is not None:
        trainer.load(state)
    progress = Progress(work / "tokenizer" / "log.jsonl")
    store = SceneStore(work / "scenes")
    report: dict[str, float] = {}
    while trainer.step < steps:
        windows, width = trainer.recipe.phase(trainer.step)
        images, _ = store.batch(np.random.default_rng([7, trainer.step, rank]), windows, width)
        report = {k: 0.9 * report.get(k, v) + 0.1 * v for k, v in trainer.train_step(images).items()}
        if rank == 0 and trainer.step % 20 == 0:
            progress.report(trainer.step, **report)
        if rank == 0 and trainer.step % 100 == 0:
            save_state(path, trainer.state())
    if rank == 0:
        save_state(path, trainer.state())


def main() -> None:
    parser = argparse.ArgumentParser(description="train the VQ tokenizer")
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=TokenizerRecipe().steps)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args()
    run_workers(train, args.workers, args.work, args.steps)


if __name__ == "__main__":
    main()
