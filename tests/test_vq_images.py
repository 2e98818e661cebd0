"""Pictures between files and tensors."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from panoserve.vq.images import center_crop, from_pil, read_picture, to_pil


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8))


def test_every_level_survives_the_round_trip() -> None:
    image = gradient(256, 3)
    assert np.array_equal(np.array(to_pil(from_pil(image))), np.array(image))


def test_values() -> None:
    """facts.md 2.4: in by (x / 255 - 0.5) / 0.5, out by truncating 127.5 x + 128 within 0..255."""
    image = Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8))
    torch.testing.assert_close(from_pil(image).flatten(), torch.tensor([-1.0, 1.0, -0.6]))
    values = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.0039, 1.0, 7.0, 0.5, -0.5 / 127.5])
    pixels = np.array(to_pil(values.view(3, 1, 3)))
    assert pixels.transpose(2, 0, 1).flatten().tolist() == [0, 0, 64, 128, 128, 255, 255, 191, 127]


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_pil(torch.full((3, 2, 2), float("nan")))


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0II+\0\x08\0\0\0\xff\xff", b"\xff"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_broken_exif_is_ignored(kind: str, exif: bytes) -> None:
    gradient(16, 8).save(file := io.BytesIO(), kind, exif=exif)
    assert read_picture(file, "picture").size == (16, 8)


def test_other_modes_become_rgb() -> None:
    assert from_pil(Image.new("L", (2, 1), 255)).tolist() == [[[1.0, 1.0]]] * 3
    assert from_pil(Image.new("RGBA", (1, 1), (255, 0, 255, 0))).flatten().tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("size", [(100, 64), (64, 64), (33, 500), (300, 131)])
def test_center_crop_is_square_and_central(size: tuple[int, int]) -> None:
    cropped = center_crop(gradient(*size), 32)
    assert cropped.size == (32, 32)


def test_center_crop_without_resizing_is_a_cut() -> None:
    image = gradient(41, 32)
    assert np.array_equal(np.array(center_crop(image, 32)), np.array(image)[:, 4:36])


def test_center_crop_halves_by_box_averaging() -> None:
    """A 64-pixel picture to 32: exactly one halving; then the bicubic resize has nothing to do."""
    image = gradient(64, 64)
    assert np.array_equal(np.array(center_crop(image, 32)), np.array(image.resize((32, 32), Image.Resampling.BOX)))
