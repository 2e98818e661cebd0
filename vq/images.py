"""Between pictures in files and pictures in tensors (facts.md 2.4)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from panoserve.errors import InvalidRequestError

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
# zlib's level: 6, the usual one, takes twice the time for 5 % smaller files (docs/log.md).
PNG_LEVEL = 4
MAX_PICTURE = 80_000_000  # pixels; a small file can claim any size


def read_picture(source: Path | BinaryIO, name: str, param: str | None = None, most: int = MAX_PICTURE) -> Image.Image:
    """A picture file, turned as its EXIF says: RGBA if it is transparent in places, else RGB.

    `name` is what an error calls it, `param` the request's field. Raises InvalidRequestError for what is no picture of
    8 bits a channel and at most `most` pixels, which is known before any of them is decoded.
    """
    at_most = f"at most {most // 10**6} million are taken, so scale it down first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
            picture = Image.open(source, formats=PICTURE_FORMATS)
        with picture:
            area = picture.width * picture.height
            if area > most:
                pixels = f"it has {picture.width}x{picture.height} pixels"
                raise InvalidRequestError(f"{name} is too large: {pixels}; {at_most}", param)
            if picture.mode.startswith(("I", "F")):
                raise InvalidRequestError(f"{name} has more than 8 bits a channel; save it with 8 bits first", param)
            upright = turned_upright(picture)
            if upright.has_transparency_data:
                clear = upright.convert("RGBA")
                if clear.getchannel("A").histogram()[255] < area:
                    return clear
            return upright.convert("RGB")
    except InvalidRequestError:  # a ValueError, too
        raise
    except FileNotFoundError:
        raise InvalidRequestError(f"{name} does not exist", param) from None
    except UnidentifiedImageError:
        message = f"{name} is of no kind that can be read; expected PNG, JPEG or WebP"
        raise InvalidRequestError(message, param) from None
    except Image.DecompressionBombError:  # Pillow's own limit
        raise InvalidRequestError(f"{name} is far too large; {at_most}", param) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidRequestError(f"{name} cannot be read: {error}", param) from None


def turned_upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, or as it is if that cannot be read. Raises OSError and others for pixels."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow's parser of EXIF raises whatever it stumbles over, struct.error among them
        return picture


def to_pil(image: Tensor) -> Image.Image:
    """A picture [3, H, W] in about [-1, 1] -> 8-bit RGB: 127.5 x + 128, clamped to 0..255, fraction dropped.

    The same as rounding 127.5 x + 127.5 half up. NaN raises ValueError.
    """
    levels = image.detach().float().cpu().mul(127.5).add_(128.0)
    if levels.isnan().any():
        raise ValueError("the picture holds NaN; were the tokenizer's weights or the codes damaged?")
    pixels = levels.clamp_(0.0, 255.0).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """Any picture -> float32 [3, H, W] in [-1, 1]: (x / 255 - 0.5) / 0.5. Transparency is dropped."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).float().div_(255.0).sub_(0.5).div_(0.5)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of a picture, size x size pixels, as the published models were trained on.

    Halved by box averaging while the shorter side is at least twice `size`, then resized bicubically so that the
    shorter side is `size`, then cut.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
