"""Stage 7: what crops that continue something are trained on: scenes that go on below, and scenes that change.

    python -m panoserve.train.continuations WORK_DIR [--shards 8] [--workers 2]

A *tall* scene is two crops high: the foreground goes on below (scenes/foreground.py). In a *changing* scene the land
stays, and time, mood, weather and season pass over into another scene's, from left to right. Rendered, encoded and
written as codes at once. Resumes shard by shard.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoserve.train.codes import encode_picture
from panoserve.train.files import write_whole
from panoserve.train.render import HEIGHT, MARGIN, SCENES_A_SHARD, render
from panoserve.train.scenes import SceneSpec, sample_spec
from panoserve.train.tokenizer import load_tokenizer
from panoserve.train.workers import run_workers, world
from panoserve.vq.model import VQModel

WIDTH = 576  # pixels of a stored scene
FIRST_SCENE = 500_000  # number of the first scene here; those before it are the other stages'
RAMP = (160, 288)  # pixels that a change takes: shortest, longest


def changed(spec: SceneSpec, other: SceneSpec) -> SceneSpec:
    """`spec` with the sky and the season of `other`, where its land can have them."""
    fixed = spec.feature in ("sea", "desert") or spec.extra in ("flowers", "leaves")
    return replace(
        spec,
        time=other.time,
        mood=other.mood,
        weather="clear" if spec.feature == "desert" and other.weather == "overcast" else other.weather,
        season=spec.season if fixed else other.season,
        moon=other.moon,
        stars=other.stars,
        aurora=other.aurora and spec.feature != "desert",
    )


def changing_specs(scene: int) -> tuple[SceneSpec, SceneSpec]:
    """What changing scene number `scene` shows on its left and on its right."""
    spec = sample_spec(scene)
    return spec, changed(spec, sample_spec(scene + FIRST_SCENE))


def render_changing(scene: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Changing scene number `scene` and its margin as uint8 [240, 576, 3], and the pixel columns between which it
    changes.
    """
    rng = np.random.default_rng([13, scene])
    length = int(rng.integers(RAMP[0], RAMP[1] + 1))
    first = int(rng.integers(HEIGHT // 2, WIDTH - length - HEIGHT // 2 + 1))
    left, right = (
        render(spec, WIDTH, HEIGHT + MARGIN, own_land=True).astype(np.float32) for spec in changing_specs(scene)
    )
    t = np.clip((np.arange(WIDTH) - first) / length, 0, 1)
    share = (t * t * (3 - 2 * t)).astype(np.float32)[:, None]
    return (left + (right - left) * share + 0.5).astype(np.uint8), (first, first + length)


def make_shard(model: VQModel, shard: int) -> dict[str, NDArray[np.uint16]]:
    """One shard: `tall` codes [100, 48, 72], `changing` codes [100, 24, 72], `change` [100, 2], the code columns
    between which each changes. Both kinds have the scene numbers FIRST_SCENE + 100 shard and on.
    """
    side = model.config.downsample
    tall, changing, change = [], [], []
    for scene in range(FIRST_SCENE + shard * SCENES_A_SHARD, FIRST_SCENE + (shard + 1) * SCENES_A_SHARD):
        tall.append(encode_picture(model, render(sample_spec(scene), WIDTH, 2 * HEIGHT + MARGIN))[: 2 * HEIGHT // side])
        pixels, columns = render_changing(scene)
        changing.append(encode_picture(model, pixels)[: HEIGHT // side])
        change.append([column // side for column in columns])
    return {"tall": np.stack(tall), "changing": np.stack(changing), "change": np.array(change, np.uint16)}


def make(rank: int, work: Path, shards: int) -> None:
    """Render and encode this process's share of the shards."""
    model = load_tokenizer(work)
    for shard in range(rank, shards, world()):
        path = work / "continuations" / f"{shard:04d}.npz"
        if path.exists():
            continue
        arrays = make_shard(model, shard)

        def save(temporary: Path, arrays: dict[str, NDArray[np.uint16]] = arrays) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        write_whole(path, save)
        print(path, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="render and encode tall and changing scenes")
    parser.add_argument("work", type=Path)
    parser.add_argument("--shards", type=int, default=8, help="of 100 scenes of each kind")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    run_workers(make, args.workers, args.work, args.shards)


if __name__ == "__main__":
    main()
