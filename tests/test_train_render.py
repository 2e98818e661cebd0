"""Stored scenes have a margin below, so that the codes of a crop's last rows do not know that the picture ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from panoserve.train.codes import encode_picture, encode_scene
from panoserve.train.render import HEIGHT, MARGIN, SCENES_A_SHARD, WIDTH, SceneStore, render_scene
from panoserve.train.tokenizer import MINI_VQ
from panoserve.vq.model import VQModel


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SceneStore:
    """One shard, all of its scenes alike; only the margin differs between them."""
    folder: Path = tmp_path_factory.mktemp("scenes")
    scene = render_scene(1, MARGIN)
    shard = np.lib.format.open_memmap(
        folder / "0000.npy", mode="w+", dtype=np.uint8, shape=(SCENES_A_SHARD, HEIGHT + MARGIN, WIDTH, 3)
    )
    shard[:2] = scene
    shard[1, HEIGHT:] = 0
    shard.flush()
    return SceneStore(folder)


def test_a_margin_leaves_the_scene_as_it_is() -> None:
    flat, tall = render_scene(1), render_scene(1, MARGIN)
    assert flat.shape == (HEIGHT, WIDTH, 3) and tall.shape == (HEIGHT + MARGIN, WIDTH, 3)
    assert np.array_equal(tall[: HEIGHT - 8], flat[: HEIGHT - 8])
    assert tall[HEIGHT:].std() > 1


def test_windows_are_cut_above_the_margin(store: SceneStore) -> None:
    assert store.whole(0).shape == (HEIGHT + MARGIN, WIDTH, 3)
    window = store.window(0, 100, 96, flip=True)
    assert np.array_equal(window[:, ::-1], store.whole(0)[:HEIGHT, 100:196])
    assert np.array_equal(window, store.window(1, 100, 96, flip=True))
    images, _ = store.batch(np.random.default_rng(0), 2, 96)
    assert images.shape == (2, 3, HEIGHT, 96)


def test_codes_of_the_last_rows_are_those_of_a_picture_that_goes_on(store: SceneStore) -> None:
    torch.manual_seed(0)
    model = VQModel(MINI_VQ).eval()
    rows = HEIGHT // MINI_VQ.downsample
    codes = [encode_scene(model, store.whole(scene), 0) for scene in (0, 1)]
    assert codes[0].shape == (rows, WIDTH // MINI_VQ.downsample - 1)
    assert not np.array_equal(codes[0][-1], codes[1][-1]), "the margin reaches the last row"
    assert encode_picture(model, store.whole(0)[:, :96]).shape == ((HEIGHT + MARGIN) // MINI_VQ.downsample, 12)
