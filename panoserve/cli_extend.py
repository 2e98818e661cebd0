"""`panoserve extend`: draw around a picture, and its replay; serve/extend.py says what that can and cannot do."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from panoserve.cli_draw import SAMPLING, quiet_engine, record_of, request_of, warn
from panoserve.cli_files import check_output, fingerprint_model, load_picture
from panoserve.cli_model import open_folder
from panoserve.cli_record import DrawRecord, write_png
from panoserve.errors import InvalidRequestError, ModelFolderError

if TYPE_CHECKING:
    from PIL.Image import Image

    from panoserve import PanoramaRequest
    from panoserve.serve.extend import Sides
    from panoserve.serve.folder import ModelFolder
    from panoserve.serve.work import Made

ABOUT = "draw around a picture, whose own pixels stay as they are"
DETAIL = (
    "Say what to draw with --prompt, --label or --features. The right side and the lower edge continue the picture, "
    "the left side does so mirrored; up works for skies, and at most one crop high (docs/redirection.md)."
)
SIDES = ("left", "right", "up", "down")
TALL = 2  # crops: taller pictures than this are continued badly


@dataclass(frozen=True, slots=True)
class Job:
    """One extension: of what, by how much, and where the result goes."""

    picture: Image
    sides: Sides
    request: PanoramaRequest
    features: Path | None
    folder: ModelFolder
    context: str
    dtype: str
    kv_cache_gib: float | None
    output: Path
    json: bool
    verbose: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, help="the picture to extend: PNG, JPEG or WebP")
    for side in SIDES:
        parser.add_argument(f"--{side}", type=int, default=0, metavar="PX", help=f"pixels to draw {WHERE[side]}")
    parser.add_argument("--prompt", help="what to draw, for a model with a text encoder")
    parser.add_argument("--label", type=int, metavar="N", help="class to draw, for a class-conditional model")
    parser.add_argument(
        "--features", type=Path, metavar="FILE", help=".npy or .safetensors with caption features [n, caption_dim]"
    )
    parser.add_argument(
        "--fit",
        type=int,
        metavar="PX",
        help="scale the picture to this height first; a model continues best what is about one crop high (default: as "
        "it is)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", required=True, help="the picture to write")


WHERE = {"left": "on its left", "right": "on its right", "up": "above it", "down": "below it"}


def extend(arguments: argparse.Namespace) -> int:
    """Check everything, draw, write, tell."""
    from panoserve.serve.extend import Sides

    check_output(arguments.output, ".png")
    sides = Sides(**{side: getattr(arguments, side) for side in SIDES})
    values = {name: getattr(arguments, name) for name in ("prompt", "label", *SAMPLING) if name in arguments}
    return _run(
        Job(
            picture=_fitted(load_picture(arguments.picture), arguments.fit),
            sides=sides,
            request=request_of(values, arguments.features),
            features=arguments.features,
            folder=open_folder(arguments.model),
            context=arguments.context,
            dtype=arguments.dtype,
            kv_cache_gib=arguments.kv_cache_gib,
            output=arguments.output,
            json=arguments.json,
            verbose=arguments.verbose,
        )
    )


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
    return _run(
        Job(
            picture=picture.crop(box),
            sides=sides,
            request=request_of(values, features),
            features=features,
            folder=folder,
            context=arguments.context or record.context,
            dtype=arguments.dtype or record.dtype,
            kv_cache_gib=arguments.kv_cache_gib,
            output=output,
            json=arguments.json,
            verbose=arguments.verbose,
        )
    )


def _fitted(picture: Image, height: int | None) -> Image:
    from PIL.Image import Resampling

    if height is None:
        return picture
    if height < 1:
        raise InvalidRequestError(f"--fit is {height}, but must be a height in pixels, such as 512")
    return picture.resize((max(1, round(picture.width * height / picture.height)), height), Resampling.LANCZOS)


def _run(job: Job) -> int:
    from panoserve.serve.extend import check_extension

    if not job.folder.has_vq:
        raise ModelFolderError(
            f"model folder {job.folder.path} has no vq/, so it can neither read nor make pictures; convert the "
            "checkpoint again with --vq"
        )
    config = job.folder.config
    check_extension(job.picture.size, job.sides, job.request, config, job.context)  # sooner than the engine would
    crop = config.grid.crop_pixels
    if job.picture.height > TALL * crop:
        warn(
            f"the picture is {job.picture.height} pixels high, but the model knows scenes of {crop}; "
            f"--fit {crop} scales it down first, which gives better continuations"
        )
    extension = _draw(job)
    fingerprint = fingerprint_model(job.folder.path)
    record = record_of(extension.request, job.features, job.folder, fingerprint, job.context, job.dtype)
    record = replace(record, left=job.sides.left, right=job.sides.right, up=job.sides.up, down=job.sides.down)
    if extension.truncated:
        warn(f"the prompt is longer than the {config.caption_length} tokens that the model takes; its end was not used")
    write_png(extension.image, job.output, record)
    _tell(extension, record, job)
    return 0


def _draw(job: Job) -> Made:
    with quiet_engine(job.verbose):
        from panoserve import Engine
        from panoserve.serve.extend import extend_picture

        settings = {"dtype": job.dtype, "context": job.context, "kv_cache_gib": job.kv_cache_gib}
        with Engine(job.folder.path, **settings) as engine:
            return extend_picture(engine, job.picture, job.sides, job.request)


def _tell(extension: Made, record: DrawRecord, job: Job) -> None:
    stats = {side: asdict(drawing.stats) for side, drawing in extension.drawings.items()}
    if job.json:
        drawings = {
            side: {"stats": stats[side], "codes": drawing.codes.tolist()}
            for side, drawing in extension.drawings.items()
        }
        answer = {"path": str(job.output), "request": asdict(record), "truncated": extension.truncated}
        print(json.dumps({**answer, "drawings": drawings}))
        return
    drawn = ", ".join(
        f"{side} {counters['drawn']} codes in {counters['seconds']:.1f} s" for side, counters in stats.items()
    )
    print(f"{job.output}: {record.width} x {record.height} pixels, seed {record.seed}, {drawn}")
