"""Stage 9: teach the decoder to draw edges.

Trained for the mean error, a decoder paints what its codes leave open as the mean of all that it could be: soft. Here
the decoder, and nothing else, is trained on against a critic that compares its pictures, patch by patch, with the
scenes themselves. The critic does not mind that steps are larger at the borders of codes, which is what one sees of
borders between crops (borders.py), so that has a price. Codes keep their meaning: the transformer need not know.

python -m panoserve.train.sharpening WORK_DIR [--steps 2000] [--workers 2]

Starts from the *borders* stage and reads the scenes and their codes; resumes from WORK_DIR/sharpening/state.pt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoserve.train.borders import AREA, decoder_parameters, steps_by_place
from panoserve.train.codes import encoded_window
from panoserve.train.files import Progress, load_state, save_state
from panoserve.train.precision import mixed
from panoserve.train.render import HEIGHT, SCENES_A_SHARD, SceneStore, to_images
from panoserve.train.tokenizer import MINI_VQ, cosine_rate, reconstruction_loss, speed_up_norms
from panoserve.train.workers import average_gradients, run_workers, total, world
from panoserve.vq.model import VQModel

WINDOWS = 4  # of HEIGHT x HEIGHT pixels a step and process
DECODER_RATE, CRITIC_RATE, WARM_UP = 3e-4, 8e-4, 50
CRITIC_SHARE = 0.4  # the length of the critic's gradient in the picture over that of the error's
PRICE, GRID_RATE = 1.0, 0.05  # on the running mean of the grid of codes, and its rate: a single batch has edges in it
PENALTY, PENALTY_EVERY = 0.05, 8  # R1 of a patch's score, on every eighth step
LEAK = 0.2  # of the critic's units


class Critic(nn.Module):
    """Pictures [B, 3, H, W] to one score for every patch of 8 x 8 pixels, which sees 38 x 38 of them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(3, width, 4, 2, 1),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
            nn.Conv2d(4 * width, 4 * width, 3, 1, 1),
        ]
        # Torch's own beginning is so faint that real and made score alike for hundreds of steps.
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.score = nn.Conv2d(4 * width, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LEAK)
        return self.score(x)


def code_grid(pictures: Tensor, side: int) -> Tensor:
    """How much larger the mean step from pixel to pixel is at each place within a code of `side` pixels than at all of
    them, as a share, over pictures [B, C, H, W]: [2, side], along the rows and along the columns.

    0 on average where no place is unlike another; single edges stand anywhere, and cancel over many pictures.
    """
    grids = []
    for along in (pictures, pictures.transpose(-1, -2)):
        place = steps_by_place(along, side, AREA).mean((0, 1, 2))
        grids.append((place - place.mean()) / (place.mean() + 1e-6))
    return torch.stack(grids)


def duel(first: Tensor, second: Tensor) -> Tensor:
    """The price of the scores `first` not being above the scores `second` of the same places."""
    return F.softplus(second - first).mean()


class Sharpener:
    """Decoder, critic, their optimisers, the running mean of the grid, and the step they are at."""

    def __init__(self, model: VQModel, steps: int) -> None:
        self.model, self.steps, self.step = model, steps, 0
        speed_up_norms(model)
        self.grid = torch.zeros(2, model.config.downsample)  # the running mean of code_grid
        self.critic = Critic().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.free = decoder_parameters(model)
        self.optimizer, self.critic_optimizer = (
            torch.optim.Adam(parameters, betas=(0.5, 0.99), fused=True)
            for parameters in (self.free, self.critic.parameters())
        )

    def train_step(self, codes: Tensor, images: Tensor) -> dict[str, float]:
        """One step of both on codes [B, h, w] and the pictures [B, 3, H, W] they are of; returns the losses."""
        for optimizer, peak in ((self.optimizer, DECODER_RATE), (self.critic_optimizer, CRITIC_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(self.step, self.steps, peak, WARM_UP)
        with mixed():
            made = self.model.decode(codes)
        report = self._teach_critic(made.detach().float(), images)
        report |= self._teach_decoder(made, images)
        self.step += 1
        return report

    def _teach_critic(self, made: Tensor, images: Tensor) -> dict[str, float]:
        self.critic.requires_grad_(True)
        with mixed():
            loss = duel(self.critic(images).float(), self.critic(made).float())
        loss.backward()
        if self.step % PENALTY_EVERY == 0:
            seen = images[:1].clone().requires_grad_(True)
            scores = self.critic(seen)
            (slope,) = torch.autograd.grad(scores.sum(), seen, create_graph=True)
            (PENALTY * PENALTY_EVERY * slope.square().sum() / scores.numel()).backward()
        self._move(self.critic_optimizer, list(self.critic.parameters()))
        return {"critic": loss.item()}

    def _teach_decoder(self, made: Tensor, images: Tensor) -> dict[str, float]:
        self.critic.requires_grad_(False)
        picture = made.detach().float().requires_grad_(True)
        error = reconstruction_loss(picture, images)
        (to_scene,) = torch.autograd.grad(error, picture)
        grid = code_grid(picture, self.model.config.downsample)
        self.grid = self.grid.lerp(total(grid.detach().clone()) / world(), GRID_RATE)
        (to_even,) = torch.autograd.grad(PRICE * (self.grid * grid).sum(), picture)
        with mixed():
            with torch.no_grad():
                real = self.critic(images)
            loss = duel(self.critic(picture).float(), real.float())
        (to_critic,) = torch.autograd.grad(loss, picture)
        share = CRITIC_SHARE * min(1.0, self.step / (2 * WARM_UP)) * to_scene.norm() / (to_critic.norm() + 1e-12)
        made.backward((to_scene + to_even + share * to_critic).to(made.dtype))
        self._move(self.optimizer, self.free)
        return {
            "error": error.item(),
            "grid": self.grid.abs().max().item(),
            "decoder": loss.item(),
            "l1": F.l1_loss(picture, images).item(),
        }

    def _move(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "critic": self.critic.state_dict(),
            "grid": self.grid,
            "optimizers": [self.optimizer.state_dict(), self.critic_optimizer.state_dict()],
            "step": self.step,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.critic.load_state_dict(state["critic"])
        self.grid = state["grid"].clone()
        for optimizer, saved in zip((self.optimizer, self.critic_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


class CodedScenes:
    """Scenes of a folder that have been encoded, and their codes."""

    def __init__(self, work: Path) -> None:
        self.store = SceneStore(work / "scenes")
        self.codes = {
            shard: np.load(path, mmap_mode="r")
            for shard in self.store.shards
            if (path := work / "codes" / f"{shard:04d}.npy").exists()
        }
        if not self.codes:
            raise FileNotFoundError(f"no codes in {work / 'codes'}; run `python -m panoserve.train.codes {work}` first")

    def batch(self, rng: np.random.Generator, size: int, side: int) -> tuple[Tensor, Tensor]:
        """Random windows: codes int64 [size, 24, 24] and pictures [size, 3, 192, 192] in [-1, 1]."""
        columns = HEIGHT // side
        codes, pixels = [], []
        for _ in range(size):
            shard = int(rng.choice(list(self.codes)))
            of_shard = self.codes[shard]
            index = int(rng.integers(len(of_shard)))
            scene = shard * SCENES_A_SHARD + index
            left = int(rng.integers(of_shard.shape[2] - columns + 1))
            window = encoded_window(self.store.whole(scene), scene, side)
            codes.append(of_shard[index, :, left : left + columns].astype(np.int64))
            pixels.append(window[:HEIGHT, left * side : left * side + HEIGHT])
        return torch.from_numpy(np.stack(codes)), to_images(np.stack(pixels))


def load_decoder(work: Path) -> VQModel:
    """The tokenizer that the *borders* stage left in the folder `work`."""
    state = load_state(work / "borders" / "state.pt")
    if state is None:
        raise FileNotFoundError(f"no borders in {work}; run `python -m panoserve.train.borders {work}` first")
    model = VQModel(MINI_VQ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.load_state_dict(state["model"])
    return model


def train(rank: int, work: Path, steps: int) -> None:
    """One process of the training run."""
    torch.manual_seed(0)
    trainer = Sharpener(load_decoder(work), steps)
    path = work / "sharpening" / "state.pt"
    if (state := load_state(path)) is not None:
        trainer.load(state)
    progress = Progress(work / "sharpening" / "log.jsonl")
    scenes, side = CodedScenes(work), trainer.model.config.downsample
    report: dict[str, float] = {}
    while trainer.step < steps:
        batch = scenes.batch(np.random.default_rng([13, trainer.step, rank]), WINDOWS, side)
        report = {k: 0.9 * report.get(k, v) + 0.1 * v for k, v in trainer.train_step(*batch).items()}
        if rank == 0 and (trainer.step % 20 == 0 or trainer.step == steps):
            progress.report(trainer.step, **report)
        if rank == 0 and (trainer.step % 100 == 0 or trainer.step == steps):
            save_state(path, trainer.state())


def main() -> None:
    parser = argparse.ArgumentParser(description="teach the decoder to draw edges")
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args()
    run_workers(train, args.workers, args.work, args.steps)


if __name__ == "__main__":
    main()
