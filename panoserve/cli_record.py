"""What a picture says about itself: the record of one drawing, as PNG text chunks, and its way back.

Every value is one chunk `panoserve.<field>` holding JSON, so that `panoserve replay` needs nothing else to draw the
same picture again. The model is named by its folder's name and a fingerprint of its content, never by a path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoserve.cli_files import write_atomically
from panoserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "panoserve."


@dataclass(frozen=True, slots=True)
class DrawRecord:
    """All that decides the pixels of one panorama. Exactly one of prompt, label and features is set."""

    prompt: str | None
    label: int | None
    features: str | None  # the file's path as it was given; the fingerprint guards its content
    features_fingerprint: str | None
    width: int  # pixels
    height: int  # pixels
    stride: int  # codes
    guidance: float
    guidance_interval: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    context: str
    dtype: str
    model: str
    model_fingerprint: str
    version: str
    row_stride: int | None = None  # codes; absent: as stride
    loop: bool = False
    prompts: list[dict[str, Any]] | None = None  # fields of PromptAt, places in pixels or shares
    blend: float = 0  # whole pixels, or a share of the picture
    negative_prompt: str | None = None
    left: int = 0  # pixels drawn on this side of a picture (panoserve extend), whose own pixels are in the middle
    right: int = 0
    up: int = 0
    down: int = 0
    redrawn: bool = False  # a part of another picture (panoserve redraw), which this one does not carry
    hold: float | None = None  # drawn in two passes, with this share of the first one's codes in the middle of crops

    @property
    def extends(self) -> bool:
        """Whether this is a picture that was drawn around."""
        return any((self.left, self.right, self.up, self.down))

    def to_chunks(self) -> dict[str, str]:
        """The text chunks of the picture; None is left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        chunks = {PREFIX + name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
        return {"Software": f"panoserve {self.version}", **chunks}

    @classmethod
    def from_chunks(cls, chunks: Mapping[str, str], source: str) -> DrawRecord:
        """Read the record back; `source` names the picture in the error. Raises InvalidRequestError."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            name, declared = field.name, str(field.type)
            text = chunks.get(PREFIX + name)
            if text is None and field.default is not MISSING:
                values[name] = field.default
                continue
            if text is None and not declared.endswith("None"):
                raise InvalidRequestError(
                    f"{source} carries no {PREFIX}{name} chunk, so it cannot be drawn again; expected a PNG written by "
                    "`panoserve generate` (some programs drop text chunks when they save a picture)"
                )
            values[name] = None if text is None else _parse(text, declared, name, source)
        if sum(values[name] is not None for name in ("prompt", "label", "features")) != 1:
            raise InvalidRequestError(f"{source} must carry exactly one of prompt, label and features")
        return cls(**values)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list[dict[str, Any]]": (list,),
}


def _parse(text: str, declared: str, name: str, source: str) -> Any:
    """One chunk's JSON value, checked against the field's declared type."""
    kinds = _TYPES[declared.removesuffix(" | None")]
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise InvalidRequestError(f"{source} carries {PREFIX}{name} = {text[:60]!r}, expected JSON of type {declared}")
    return value


def read_record(path: Path) -> DrawRecord:
    """Read the record of a picture from its header alone. Raises InvalidRequestError when there is none."""
    from PIL.PngImagePlugin import PngImageFile  # not Image.open: no pixel is decoded, so no size limit is needed

    try:
        with PngImageFile(path) as picture:
            chunks = {str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)}
    except FileNotFoundError:
        raise InvalidRequestError(f"picture {path} does not exist") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidRequestError(f"{path} is not a PNG picture that can be read: {error}") from None
    return DrawRecord.from_chunks(chunks, str(path))


def write_png(image: Image.Image, path: Path, record: DrawRecord) -> None:
    """Write the picture with its record, atomically; makes the folder when it is missing."""
    from PIL.PngImagePlugin import PngInfo

    from panoserve.vq.images import PNG_LEVEL

    info = PngInfo()
    for key, text in record.to_chunks().items():
        info.add_itxt(key, text)
    write_atomically(path, lambda file: image.save(file, format="PNG", compress_level=PNG_LEVEL, pnginfo=info))
