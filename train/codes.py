"""Stage 4: encode the rendered scenes into codes, once.

    python -m panoserve.train.codes WORK_DIR [--workers 2]

Whole scenes are encoded, not crops, and with the margin below them, whose codes are dropped: a crop's codes are then
those that the same place has in a panorama, and its last rows do not know the zeros that the encoder pads a picture's
edge with. Every scene is shifted by less than one code, and half of them are mirrored, at random. Resumes by shards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from panoserve.train.files import write_whole
from panoserve.train.precision import mixed
from panoserve.train.render import HEIGHT, SCENES_A_SHARD, WIDTH, SceneStore, to_images
from panoserve.train.tokenizer import load_tokenizer
from panoserve.train.workers import run_workers, world
from panoserve.vq.model import VQModel


def encode_picture(model: VQModel, pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Codes [H / 8, W / 8] of a picture [H, W, 3]."""
    with torch.no_grad(), mixed():
        return model.encode(to_images(pixels[None].copy()))[0].numpy().astype(np.uint16)


def encoded_window(pixels: NDArray[np.uint8], scene: int, side: int) -> NDArray[np.uint8]:
    """What of scene number `scene`, pixels and margin [240, 960, 3], is encoded: [240, 960 - side, 3], shifted by less
    than one code of `side` pixels, perhaps mirrored.
    """
    rng = np.random.default_rng([5, scene])
    shift = int(rng.integers(side))
    window = pixels[:, shift : shift + WIDTH - side]
    return window[:, ::-1] if rng.random() < 0.5 else window


def encode_scene(model: VQModel, pixels: NDArray[np.uint8], scene: int) -> NDArray[np.uint16]:
    """The codes [24, columns] of scene number `scene`, pixels and margin [240, 960, 3]."""
    side = model.config.downsample
    return encode_picture(model, encoded_window(pixels, scene, side))[: HEIGHT // side]


def encode_shard(model: VQModel, store: SceneStore, shard: int) -> NDArray[np.uint16]:
    """The codes [100, 24, columns] of one shard of scenes."""
    return np.stack(
        [
            encode_scene(model, store.whole(scene), scene)
            for scene in range(shard * SCENES_A_SHARD, (shard + 1) * SCENES_A_SHARD)
        ]
    )


def encode(rank: int, work: Path) -> None:
    """Encode this process's share of the shards."""
    model = load_tokenizer(work)
    store = SceneStore(work / "scenes")
    for shard in list(store.shards)[rank :: world()]:
        path = work / "codes" / f"{shard:04d}.npy"
        if path.exists():
            continue
        codes = encode_shard(model, store, shard)

        def save(temporary: Path, codes: NDArray[np.uint16] = codes) -> None:
            with temporary.open("wb") as file:
                np.save(file, codes)

        write_whole(path, save)
        print(path, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="encode the scenes")
    parser.add_argument("work", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    run_workers(encode, args.workers, args.work)


if __name__ == "__main__":
    main()
