"""`panoserve redraw`: draw anew what a mask leaves open; serve/redraw.py says what that can and cannot do."""

from __future__ import annotations

import argparse
from pathlib import Path

from panoserve.cli_edit import add_edit, check_reads_pictures, edit_of, run_edit
from panoserve.errors import InvalidRequestError

ABOUT = "draw a part of a picture anew, all other pixels stay as they are"
DETAIL = (
    "Say what to draw with --prompt, --label or --features. Transparent pixels are drawn: those of --mask, or without "
    "it the picture's own. The mask is a PNG or WebP of the picture's size; one that keeps a single rectangle is drawn "
    "around as `panoserve extend` does, with its defaults."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, help="the picture to redraw a part of: PNG, JPEG or WebP")
    parser.add_argument(
        "--mask", type=Path, metavar="PNG", help="transparent where the picture is to be drawn anew (default: PICTURE)"
    )
    add_edit(parser)


def redraw(arguments: argparse.Namespace) -> int:
    """Check everything, draw, write, tell."""
    import numpy as np

    from panoserve.serve.redraw import HALF, masked_work, opacity_of, redraw_picture
    from panoserve.vq.images import read_picture

    edit = edit_of(arguments)
    check_reads_pictures(edit.folder)
    picture = read_picture(arguments.picture, f"picture {arguments.picture}")
    mask = None if arguments.mask is None else read_picture(arguments.mask, f"mask {arguments.mask}")
    opacity = opacity_of(picture, mask)
    if opacity is None or (mask is None and not (opacity < HALF).any()):
        raise InvalidRequestError(
            f"picture {arguments.picture} is nowhere (more than half) transparent, so there is nothing to draw; add "
            f"--mask, a PNG of {picture.width}x{picture.height} pixels that is transparent (not black) where to draw"
        )
    pixels = np.array(picture.convert("RGB"))
    masked_work(pixels, opacity, edit.request, edit.folder.config, edit.context)  # sooner than the engine would
    return run_edit(edit, lambda engine: redraw_picture(engine, picture, mask, edit.request), redrawn=True)
