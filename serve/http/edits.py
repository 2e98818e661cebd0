"""POST /v1/images/edits: its fields, its pictures, and the work that they ask for.

Without sides a mask says what is drawn: transparent pixels, as in OpenAI's API; without a mask, those of the picture
itself. With left, right, up or down the picture is extended.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from panoserve.configs.model import ModelConfig
from panoserve.errors import InvalidRequestError
from panoserve.serve.extend import Extension, Sides, check_extension, usual_stride
from panoserve.serve.http.checks import Field, checked_later, one_of, refused
from panoserve.serve.http.errors import ApiError, bad_value
from panoserve.serve.http.fields import FIELDS, ImageJob, check_crops, check_format, output_of, request_of, several
from panoserve.serve.http.settings import MAX_EDIT_PIXELS
from panoserve.serve.redraw import masked_work, opacity_of
from panoserve.serve.request import PanoramaRequest
from panoserve.serve.work import Pixels, Work
from panoserve.vq.images import read_picture

SIDES = tuple(Sides.__dataclass_fields__)
GENERATION_ONLY = ("style", "moderation", "loop")
EDIT_FIELDS: dict[str, Field] = {
    **{name: field for name, field in FIELDS.items() if name not in GENERATION_ONLY},
    "input_fidelity": one_of("high", "low").noted("without effect: what is kept is kept exactly"),
    "markup": refused("say what to draw with a prompt, and where with a mask"),
    **dict.fromkeys(SIDES, checked_later("integer", minimum=0).noted("pixels to add on this side")),
}


def edit_job(
    values: dict[str, Any], image: BinaryIO | None, mask: BinaryIO | None, config: ModelConfig, context: str
) -> ImageJob:
    """Checked fields and the files as a job. Decodes pictures, which takes a while.

    Raises ApiError or InvalidRequestError.
    """
    output = output_of(values)
    if image is None:
        message = "image is missing; send the picture to edit as a file"
        raise ApiError(400, message, code="missing_required_parameter", param="image")
    request = request_of(values, config)
    picture = read_picture(image, "image", "image", MAX_EDIT_PIXELS)
    pixels: Pixels = np.array(picture.convert("RGB"))
    opacity = opacity_of(picture, None if mask is None else read_picture(mask, "mask", "mask", MAX_EDIT_PIXELS))
    sides = {name: values[name] for name in SIDES if name in values}
    work = _extension(pixels, sides, opacity, request, config, context)
    if work is None:
        if opacity is None:
            raise ApiError(
                400,
                "nothing to draw: send a mask that is transparent where the picture is to be redrawn, or extend the "
                "picture by left, right, up or down",
                code="missing_required_parameter",
                param="mask",
            )
        work = masked_work(pixels, opacity, request, config, context)
    check_size(values.get("size"), work.request)
    check_format(output, work.request)
    job = ImageJob(several(work, values), output, kind="image_edit")
    usual = usual_stride(config.grid) if isinstance(work, Extension) else None
    check_crops(job.canvases, work.request, config, "image", usual)
    return job


def _extension(
    pixels: Pixels,
    sides: dict[str, Any],
    opacity: Any,
    request: PanoramaRequest,
    config: ModelConfig,
    context: str,
) -> Work | None:
    """The work of drawing around a picture, if any side is asked for."""
    if all(pixels == 0 for pixels in sides.values()):
        return None
    if opacity is not None:
        raise bad_value(
            next(iter(sides)),
            "a picture is either extended or redrawn where it, or the mask, is transparent; do one after the other",
        )
    wanted = Sides(**sides)
    size = (pixels.shape[1], pixels.shape[0])
    try:
        resolved = check_extension(size, wanted, request, config, context)
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), error.param or "image") from None
    return Extension(pixels, wanted, resolved, config.grid)


def check_size(size: tuple[int, int] | None, request: PanoramaRequest) -> None:
    """Raise ApiError if a size is asked for that the result will not have."""
    if size not in (None, (request.width, request.height)):
        assert size is not None
        raise bad_value(
            "size",
            f"size is {sized(size)}, but the result is {request.width}x{request.height}, as large as the picture and "
            "what is drawn around it; leave size out",
        )


def sized(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
