"""Stage 1: render wide scenes into shards of uint8 arrays, and read windows of them back.

    python -m panoserve.train.render WORK_DIR [--shards N] [--start S]

A shard that exists is left alone, so the command resumes. Scene number i is `sample_spec(i)`, always.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from panoserve.train.files import write_whole
from panoserve.train.scenes import DRAWN_HEIGHT, SceneSpec, draw_scene, sample_spec

SCENES_A_SHARD = 100
HEIGHT, WIDTH = 192, 960  # pixels of a scene; crops are windows of it
MARGIN = 48  # more rows stored below: codes of the last rows must not know that the picture ends (codes.py)


def render_scene(scene: int, margin: int = 0) -> NDArray[np.uint8]:
    """Scene number `scene` as uint8 [192 + margin, 960, 3]."""
    return render(sample_spec(scene), WIDTH, HEIGHT + margin)


def render(spec: SceneSpec, width: int, height: int, own_land: bool = False) -> NDArray[np.uint8]:
    """A scene as uint8 [height, width, 3], both multiples of 3: drawn a third larger and averaged down, which smooths
    its edges. Below its first 192 rows the foreground goes on.
    """
    drawn = draw_scene(spec, width * DRAWN_HEIGHT // HEIGHT, height * DRAWN_HEIGHT // HEIGHT, own_land)
    return np.asarray(Image.fromarray(drawn).resize((width, height), Image.Resampling.LANCZOS))


def render_shard(folder: Path, shard: int) -> Path:
    """Write shard number `shard` ([100, 240, 960, 3] uint8) unless it exists; returns its path."""
    path = folder / f"{shard:04d}.npy"
    if not path.exists():
        scenes = np.empty((SCENES_A_SHARD, HEIGHT + MARGIN, WIDTH, 3), np.uint8)
        for i in range(SCENES_A_SHARD):
            scenes[i] = render_scene(shard * SCENES_A_SHARD + i, MARGIN)

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.save(file, scenes)

        write_whole(path, save)
    return path


class SceneStore:
    """The rendered scenes of a folder, memory-mapped; scene numbers index them as in `sample_spec`."""

    def __init__(self, folder: Path) -> None:
        self.shards: dict[int, NDArray[np.uint8]] = {
            int(path.stem): np.load(path, mmap_mode="r") for path in sorted(folder.glob("[0-9]*.npy"))
        }
        if not self.shards:
            raise FileNotFoundError(
                f"no scenes in {folder}; run `python -m panoserve.train.render {folder.parent}` first"
            )
        self.scenes = [shard * SCENES_A_SHARD + i for shard in self.shards for i in range(SCENES_A_SHARD)]

    def window(self, scene: int, left: int, width: int, flip: bool) -> NDArray[np.uint8]:
        """Columns left .. left + width of a scene without its margin: uint8 [192, width, 3]."""
        picture = self.whole(scene)[:HEIGHT, left : left + width]
        return picture[:, ::-1] if flip else picture

    def whole(self, scene: int) -> NDArray[np.uint8]:
        """A scene and its margin: uint8 [240, 960, 3]."""
        return self.shards[scene // SCENES_A_SHARD][scene % SCENES_A_SHARD]

    def batch(self, rng: np.random.Generator, size: int, width: int) -> tuple[Tensor, list[int]]:
        """Random windows as pictures [size, 3, 192, width] in [-1, 1], and the scenes they are from."""
        scenes = [int(s) for s in rng.choice(self.scenes, size)]
        lefts = rng.integers(0, WIDTH - width + 1, size)
        flips = rng.random(size) < 0.5
        windows = [self.window(s, int(x), width, bool(f)) for s, x, f in zip(scenes, lefts, flips, strict=True)]
        return to_images(np.stack(windows)), scenes


def to_images(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], channels last in memory."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="render training scenes")
    parser.add_argument("work", type=Path)
    parser.add_argument("--shards", type=int, default=80, help="of 100 scenes each")
    parser.add_argument("--start", type=int, default=0, help="first shard, to split the work over processes")
    args = parser.parse_args()
    for shard in range(args.start, args.shards):
        print(render_shard(args.work / "scenes", shard), flush=True)


if __name__ == "__main__":
    main()
