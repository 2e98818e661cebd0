"""`panoserve endless`: a panorama that grows, tile by tile, until its limit or Ctrl-C; it can be gone on with later."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoserve.cli_draw import SAMPLING, Job, check_folder, check_same_model, prompts_of, quiet_engine, record_of, warn
from panoserve.cli_files import fingerprint_files, fingerprint_model, load_features
from panoserve.cli_model import open_folder
from panoserve.endless_folder import EndlessFolder, State, TileWriter, read_state
from panoserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from panoserve import PanoramaRequest
    from panoserve.cli_record import DrawRecord
    from panoserve.serve.endless import Endless
    from panoserve.serve.folder import ModelFolder

ABOUT = "draw a panorama that grows until it is stopped"
DETAIL = (
    "Tiles, a preview of them all and endless.json are written as they are drawn; Ctrl-C leaves them usable, and "
    "--resume goes on from there."
)
INTERRUPTED = 130
SUBJECT = ("prompt", "label", "features", "at", "prompts", "width", "height", "down", "crops")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes besides the subject, the sampling and the engine's options."""
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="folder to write; it is made")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the panorama in DIR; only limits and engine options are taken"
    )
    parser.add_argument("--max-width", type=int, metavar="W", help="stop at this width in pixels (default: never)")
    parser.add_argument("--height", type=int, metavar="H", help="pixels (default: one crop)")
    parser.add_argument("--down", action="store_true", help="grow downwards instead of to the right")
    parser.add_argument("--max-height", type=int, metavar="H", help="with --down, stop at this height in pixels")
    parser.add_argument("--width", type=int, metavar="W", help="with --down, pixels (default: one crop)")
    parser.add_argument(
        "--crops",
        type=int,
        metavar="N",
        help="crops that are drawn together before any is written: more are faster (default: the grid side)",
    )
    parser.add_argument(
        "--at",
        nargs=2,
        action="append",
        metavar=("PIXELS", "PROMPT"),
        help="another prompt (or class) from this place on; may be repeated",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="YAML",
        help="a list of prompts with their places in pixels: prompt (or label), left, right, top, bottom",
    )
    parser.add_argument(
        "--blend", type=int, metavar="PIXELS", help="width over which prompts shade into each other (default: 0)"
    )


@dataclass(frozen=True, slots=True)
class Run:
    """What to draw, from the command line or from the folder, and how far it has come."""

    request: PanoramaRequest
    features: Path | None  # where the request's features came from
    folder: ModelFolder
    context: str
    dtype: str
    direction: str
    crops: int | None
    limit: int | None  # pixels
    state: State | None  # of what was drawn before

    @property
    def axis(self) -> int:
        return 1 if self.direction == "right" else 0

    def options(self) -> dict[str, Any]:
        """For Engine.endless; what was drawn before is in the request's `given`."""
        start = 0
        if self.state is not None and self.request.given is not None:
            start = self.state.end(self.axis) - self.request.given.shape[self.axis]
        return {"direction": self.direction, "crops": self.crops, "limit": self.limit, "start": start}

    def record(self, strips: Endless, fingerprint: str, pixels: int) -> DrawRecord:
        """What endless.json says about the picture, which is `pixels` long."""
        length = "width" if self.axis else "height"
        request = replace(strips.request, **{length: pixels})  # type: ignore[arg-type]
        return record_of(request, self.features, self.folder, fingerprint, self.context, self.dtype)


def endless(arguments: argparse.Namespace) -> int:
    from panoserve.serve.endless import Frontier

    output = arguments.output
    if output.exists() and not output.is_dir():
        raise InvalidRequestError(f"output {output} is a file, expected a folder")
    if not arguments.resume and output.is_dir() and any(output.iterdir()):
        raise InvalidRequestError(f"output {output} is not empty; name another folder, or go on in it with --resume")
    run = _resumed(arguments) if arguments.resume else _new(arguments)
    job = Job(
        run.request, run.features, run.folder, run.context, run.dtype, arguments.kv_cache_gib, arguments.json,
        arguments.verbose, output, codes=None,
    )  # fmt: skip
    check_folder(job)
    Frontier(run.request, run.folder.config, run.context, **run.options())  # raises what the engine would, but sooner
    files = EndlessFolder(output, run.axis)
    if run.state is not None:
        files.take_up(run.state.tiles)
    return _draw(run, job, files)


def _new(arguments: argparse.Namespace) -> Run:
    from panoserve import PanoramaRequest

    folder = open_folder(arguments.model)
    request = PanoramaRequest(
        **{name: getattr(arguments, name) for name in SAMPLING if name not in ("loop", "blend")},
        prompt=arguments.prompt,
        label=arguments.label,
        features=None if arguments.features is None else load_features(arguments.features),
        prompts=prompts_of(arguments, folder),
        blend=arguments.blend or 0,
        width=arguments.width,
        height=arguments.height,
    )
    direction = "down" if arguments.down else "right"
    return Run(
        request,
        arguments.features,
        folder,
        arguments.context or "reuse",
        arguments.dtype or "bfloat16",
        direction,
        arguments.crops,
        _limit(arguments, direction),
        None,
    )


def _resumed(arguments: argparse.Namespace) -> Run:
    from panoserve import PanoramaRequest

    taken = {name: getattr(arguments, name, None) for name in (*SAMPLING, *SUBJECT)}
    named = [name for name, value in taken.items() if not (value is None or value is False or value == -1)]
    if named:
        raise InvalidRequestError(
            f"--resume goes on with what {arguments.output} says, but got {', '.join(named)}; leave it out", named[0]
        )
    state = read_state(arguments.output)
    record, axis = state.record, 1 if state.direction == "right" else 0
    limit, pixels = _limit(arguments, state.direction), record.width if axis else record.height
    if limit is not None and limit <= pixels:
        raise InvalidRequestError(f"the panorama in {arguments.output} is {pixels} pixels long already; name more")
    folder = open_folder(arguments.model)
    check_same_model(record, folder, named=arguments.model is not None)
    features = None if record.features is None else Path(record.features)
    if features is not None and features.is_file() and fingerprint_files([features]) != record.features_fingerprint:
        raise InvalidRequestError(f"features file {features} is not the one that {arguments.output} was drawn from")
    kept = min(folder.config.grid_side, state.codes.shape[axis])
    request = PanoramaRequest(
        **{name: getattr(record, name) for name in ("prompt", "label", "prompts", *SAMPLING)},
        features=None if features is None else load_features(features),
        given=state.codes.narrow(axis, state.codes.shape[axis] - kept, kept),
    )
    context, dtype = arguments.context or record.context, arguments.dtype or record.dtype
    return Run(request, features, folder, context, dtype, state.direction, state.crops, limit, state)


def _limit(arguments: argparse.Namespace, direction: str) -> int | None:
    """--max-width or, growing downwards, --max-height; the other one, and a length, are refused."""
    down = direction == "down"
    for name in ("max_width", "height") if down else ("max_height", "width"):
        if getattr(arguments, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise InvalidRequestError(
                f"got {flag}, but the panorama grows {'downwards' if down else 'to the right; --down changes that'}",
                name,
            )
    limit: int | None = arguments.max_height if down else arguments.max_width
    return limit


def _draw(run: Run, job: Job, files: EndlessFolder) -> int:
    """Draw until the limit or Ctrl-C; the exit code."""
    interrupted = False
    with quiet_engine(job.verbose):
        from tqdm import tqdm

        from panoserve import Engine

        settings = {"dtype": run.dtype, "context": run.context, "kv_cache_gib": job.kv_cache_gib}
        with Engine(run.folder.path, **settings) as engine, tqdm(unit="code", desc="drawing") as bar:
            strips = engine.endless(run.request, bar.update, **run.options())
            writer = TileWriter(engine.vq, engine.config.grid_side, files, run.limit)
            fingerprint = fingerprint_model(run.folder.path)

            def save() -> None:
                bar.set_postfix(pixels=files.pixels, tiles=files.tiles)
                record = run.record(strips, fingerprint, files.pixels)
                files.save(State(record, run.direction, strips.frontier.crops, *writer.state()))

            try:
                if run.state is not None:
                    writer.take(run.state.codes)
                for strip in strips:
                    writer.take(strip.codes)
                    save()
                writer.finish()
                save()
            except KeyboardInterrupt:
                interrupted = True
                files.save_preview()
            files.remove_stale()
    if strips.truncated:
        limit = run.folder.config.caption_length
        warn(f"a prompt is longer than the {limit} tokens that the model takes; its end was not used")
    _tell(run, files, strips, job, interrupted)
    return INTERRUPTED if interrupted else 0


def _tell(run: Run, files: EndlessFolder, strips: Endless, job: Job, interrupted: bool) -> None:
    across = getattr(strips.request, "height" if run.axis else "width")
    size = (files.pixels, across) if run.axis else (across, files.pixels)
    facts = {"path": str(files.path), "width": size[0], "height": size[1], "tiles": files.tiles}
    if job.json:
        print(json.dumps({**facts, "seed": strips.request.seed, "interrupted": interrupted}))
        return
    going_on = ""
    if interrupted:
        going_on = "; stopped, go on with --resume" if files.can_go_on else "; stopped too early to go on from"
    print(f"{files.path}: {size[0]} x {size[1]} pixels in {files.tiles} tiles, seed {strips.request.seed}{going_on}")
