"""`panoserve extend`: draw around a picture, and its replay; serve/extend.py says what that can and cannot do."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from panoserve.cli_draw import SAMPLING, request_of, settings_of, warn
from panoserve.cli_edit import Edit, add_edit, check_reads_pictures, edit_of, run_edit
from panoserve.cli_files import check_output, load_picture
from panoserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from panoserve.cli_record import DrawRecord
    from panoserve.serve.extend import Sides
    from panoserve.serve.folder import ModelFolder

ABOUT = "draw around a picture, whose own pixels stay as they are"
DETAIL = (
    "Say what to draw with --prompt, --label or --features. The right side and the lower edge continue the picture, "
    "the left side does so mirrored; up works for skies, and at most one crop high (docs/redirection.md)."
)
SIDES = ("left", "right", "up", "down")
TALL = 2  # crops: taller pictures than this are continued badly


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, help="the picture to extend: PNG, JPEG or WebP")
    for side in SIDES:
        parser.add_argument(f"--{side}", type=int, default=0, metavar="PX", help=f"pixels to draw {WHERE[side]}")
    parser.add_argument(
        "--fit",
        type=int,
        metavar="PX",
        help="scale the picture to this height first; a model continues best what is about one crop high (default: as "
        "it is)",
    )
    add_edit(parser)


WHERE = {"left": "on its left", "right": "on its right", "up": "above it", "down": "below it"}


def extend(arguments: argparse.Namespace) -> int:
    """Check everything, draw, write, tell."""
    from panoserve.serve.extend import Sides

    edit = edit_of(arguments)
    sides = Sides(**{side: getattr(arguments, side) for side in SIDES})
    return _run(edit, _fitted(load_picture(arguments.picture), arguments.fit), sides)


def replay(arguments: argparse.Namespace, record: DrawRecord, folder: ModelFolder, features: Path | None) -> int:
    """Draw an extended picture again, from the pixels in its middle, which are the original's."""
    from panoserve.serve.extend import Sides

    output = arguments.output or arguments.picture.with_name(f"{arguments.picture.stem}-again.png")
    check_output(output, ".png")
    sides = Sides(**{side: getattr(record, side) for side in SIDES})
    picture = load_picture(arguments.picture)
    box = sides.left, sides.up, record.width - sides.right, record.height - sides.down
    if picture.size != (record.width, record.height) or box[0] >= box[2] or box[1] >= box[3]:
        raise InvalidRequestError(
            f"{arguments.picture} is {picture.width}x{picture.height} pixels, not the {record.width}x{record.height} "
            "that it says, so the extended picture cannot be found in it"
        )
    values = {name: getattr(record, name) for name in ("prompt", "label", *SAMPLING)}
    edit = Edit(
        request=request_of(values, features),
        features=features,
        folder=folder,
        **settings_of(arguments, record),
        output=output,
    )
    return _run(edit, picture.crop(box), sides)


def _fitted(picture: Image, height: int | None) -> Image:
    from PIL.Image import Resampling

    if height is None:
        return picture
    if height < 1:
        raise InvalidRequestError(f"--fit is {height}, but must be a height in pixels, such as 512")
    return picture.resize((max(1, round(picture.width * height / picture.height)), height), Resampling.LANCZOS)


def _run(edit: Edit, picture: Image, sides: Sides) -> int:
    from panoserve.serve.extend import check_extension, extend_picture

    check_reads_pictures(edit.folder)
    config = edit.folder.config
    check_extension(picture.size, sides, edit.request, config, edit.context)  # sooner than the engine would
    crop = config.grid.crop_pixels
    if picture.height > TALL * crop:
        warn(
            f"the picture is {picture.height} pixels high, but the model knows scenes of {crop}; "
            f"--fit {crop} scales it down first, which gives better continuations"
        )
    return run_edit(edit, lambda engine: extend_picture(engine, picture, sides, edit.request), **asdict(sides))
