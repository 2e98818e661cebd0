"""What `panoserve extend` and `panoserve redraw` share: a picture, parts of it drawn, the result with its record."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from panoserve.cli_draw import SAMPLING, Errand, quiet_engine, record_of, request_of, settings_of, warn
from panoserve.cli_files import check_output, fingerprint_model
from panoserve.cli_model import open_folder
from panoserve.cli_options import add_subject
from panoserve.cli_record import DrawRecord, write_png
from panoserve.errors import ModelFolderError

if TYPE_CHECKING:
    from panoserve import Engine
    from panoserve.serve.folder import ModelFolder
    from panoserve.serve.work import Made


@dataclass(frozen=True, slots=True)
class Edit(Errand):
    """One edit of a picture, and where the result goes."""

    output: Path


def add_edit(parser: argparse.ArgumentParser) -> None:
    """What is drawn, and the file that it is written to."""
    add_subject(parser, positional=False)
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", required=True, help="the picture to write")


def edit_of(arguments: argparse.Namespace) -> Edit:
    """The edit that a command line asks for. Raises InvalidRequestError."""
    check_output(arguments.output, ".png")
    values = {name: getattr(arguments, name) for name in ("prompt", "label", *SAMPLING) if name in arguments}
    return Edit(
        request=request_of(values, arguments.features),
        features=arguments.features,
        folder=open_folder(arguments.model),
        **settings_of(arguments),
        output=arguments.output,
    )


def check_reads_pictures(folder: ModelFolder) -> None:
    if not folder.has_vq:
        raise ModelFolderError(
            f"model folder {folder.path} has no vq/, so it can neither read nor make pictures; convert the checkpoint "
            "again with --vq"
        )


def run_edit(edit: Edit, draw: Callable[[Engine], Made], **marks: int | bool) -> int:
    """Draw, write, tell. marks: what the record says of the edit beside its request."""
    with quiet_engine(edit.verbose):
        from panoserve import Engine

        settings = {"dtype": edit.dtype, "context": edit.context, "kv_cache_gib": edit.kv_cache_gib}
        with Engine(edit.folder.path, **settings) as engine:
            made = draw(engine)
    fingerprint = fingerprint_model(edit.folder.path)
    record = record_of(made.request, edit.features, edit.folder, fingerprint, edit.context, edit.dtype)
    record = replace(record, **marks)  # type: ignore[arg-type]
    if made.truncated:
        limit = edit.folder.config.caption_length
        warn(f"the prompt is longer than the {limit} tokens that the model takes; its end was not used")
    write_png(made.image, edit.output, record)
    _tell(made, record, edit)
    return 0


def _tell(made: Made, record: DrawRecord, edit: Edit) -> None:
    stats = {part: asdict(drawing.stats) for part, drawing in made.drawings.items()}
    if edit.json:
        drawings = {
            part: {"stats": stats[part], "codes": drawing.codes.tolist()} for part, drawing in made.drawings.items()
        }
        answer = {"path": str(edit.output), "request": asdict(record), "truncated": made.truncated}
        print(json.dumps({**answer, "drawings": drawings}))
        return
    drawn = ", ".join(
        f"{part} {counters['drawn']} codes in {counters['seconds']:.1f} s" for part, counters in stats.items()
    )
    print(f"{edit.output}: {record.width} x {record.height} pixels, seed {record.seed}, {drawn}")
