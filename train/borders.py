"""Stage 3: teach the decoder to hide the borders of its codes.

Trained for the mean error, a decoder paints the inside of a code as smooth as it is unsure of it, and what it must
change it changes between codes: steps across their borders were 1.7 times those inside (1.0 in the pictures).
That grid is also what one sees of a border between crops, which is one between codes. So the decoder, and nothing
else, is trained on with a price on the difference; codes keep their meaning, and the next stages need not know.

python -m panoserve.train.borders WORK_DIR [--steps 500] [--workers 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoserve.train.files import Progress, load_state, save_state
from panoserve.train.precision import mixed
from panoserve.train.render import HEIGHT, SceneStore
from panoserve.train.tokenizer import cosine_rate, load_tokenizer, reconstruction_loss, speed_up_norms
from panoserve.train.workers import average_gradients, run_workers
from panoserve.vq.model import VQModel

WINDOWS = 4  # of HEIGHT x HEIGHT pixels a step and process
RATE, WARM_UP = 4e-4, 50
PRICE = 15.0
AREA = 6  # codes: sides of the areas in which places are compared, so that a rough area does not hide a smooth one


def steps_by_place(pictures: Tensor, side: int, area: int) -> Tensor:
    """Mean absolute steps from pixel to pixel along the rows of pictures [B, C, H, W], by place within a code of `side`
    pixels: [B, h, w, side] for areas of area x area codes. What does not fill one is left out.
    """
    step = F.pad(pictures.diff(dim=-1).abs().mean(1), (0, 1))  # [B, H, W]
    areas = step.unfold(1, area * side, area * side).unfold(2, area * side, area * side)[:, :, :-1]  # no padding
    return areas.unflatten(-1, (area, side)).mean((-3, -2))


def unevenness(pictures: Tensor, side: int) -> Tensor:
    """How much the mean step from pixel to pixel depends on its place within a code of `side` pixels.

    Of pictures [B, C, H, W], along both axes, within areas of AREA x AREA codes; what does not fill one is left out.
    """
    uneven = pictures.new_zeros(())
    for along in (pictures, pictures.transpose(-1, -2)):
        place = steps_by_place(along, side, AREA)
        uneven = uneven + (place - place.mean(-1, keepdim=True)).abs().mean()
    return uneven


def decoder_parameters(model: VQModel) -> list[nn.Parameter]:
    """What may change without giving a code another meaning; everything else is frozen."""
    model.requires_grad_(False)
    free = [*model.post_quant_conv.parameters(), *model.decoder.parameters()]
    for parameter in free:
        parameter.requires_grad_(True)
    return free


def border_step(model: VQModel, images: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """One step on pictures [B, 3, H, W] in [-1, 1]; returns the losses."""
    with mixed():
        with torch.no_grad():
            codes = model.encode(images)
        made = model.decode(codes).float()
    picture_loss, uneven = reconstruction_loss(made, images), unevenness(made, model.config.downsample)
    (picture_loss + PRICE * uneven).backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": picture_loss.item(), "uneven": uneven.item(), "l1": F.l1_loss(made.detach(), images).item()}


def train(rank: int, work: Path, steps: int) -> None:
    """One process of the training run."""
    model = load_tokenizer(work)
    speed_up_norms(model)
    optimizer = torch.optim.Adam(decoder_parameters(model), betas=(0.9, 0.95))
    path = work / "borders" / "state.pt"
    first = 0
    if (state := load_state(path)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    progress = Progress(work / "borders" / "log.jsonl")
    store = SceneStore(work / "scenes")
    report: dict[str, float] = {}
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, RATE, WARM_UP)
        images, _ = store.batch(np.random.default_rng([11, step, rank]), WINDOWS, HEIGHT)
        report = {k: 0.9 * report.get(k, v) + 0.1 * v for k, v in border_step(model, images, optimizer).items()}
        done = step + 1
        if rank == 0 and (done % 20 == 0 or done == steps):
            progress.report(done, **report)
        if rank == 0 and (done % 100 == 0 or done == steps):
            save_state(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done})


def main() -> None:
    parser = argparse.ArgumentParser(description="teach the decoder to hide the borders of its codes")
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args()
    run_workers(train, args.workers, args.work, args.steps)


if __name__ == "__main__":
    main()
