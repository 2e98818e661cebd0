"""`panoserve generate` and `panoserve replay`: a request from the command line or from a picture, drawn and written.

Everything that can be wrong with a request is found before the engine starts, and nothing is written before all is
drawn. Only results go to stdout; vLLM's log is kept off both streams unless -v asks for it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from panoserve.cli_files import (
    check_output,
    fingerprint_files,
    fingerprint_model,
    load_features,
    load_prompts,
    write_codes,
)
from panoserve.cli_model import open_folder
from panoserve.cli_record import DrawRecord, read_record, write_png
from panoserve.errors import InvalidRequestError, ModelFolderError
from panoserve.serve.two_pass import HOLD
from panoserve.version import __version__

if TYPE_CHECKING:
    from panoserve import Panorama, PanoramaRequest
    from panoserve.serve.folder import ModelFolder
    from panoserve.serve.request import PanoramaStats


@dataclass(frozen=True, slots=True)
class Errand:
    """What to draw, with which model and engine settings."""

    request: PanoramaRequest
    features: Path | None  # where the request's features came from
    folder: ModelFolder
    context: str
    dtype: str
    kv_cache_gib: float | None
    json: bool
    verbose: bool


def settings_of(arguments: argparse.Namespace, record: DrawRecord | None = None) -> dict[str, Any]:
    """The engine settings of an errand: the command line's, and what it leaves open as the record has it."""
    return {
        "context": arguments.context or (record and record.context),
        "dtype": arguments.dtype or (record and record.dtype),
        "kv_cache_gib": arguments.kv_cache_gib,
        "json": arguments.json,
        "verbose": arguments.verbose,
    }


@dataclass(frozen=True, slots=True)
class Job(Errand):
    """One panorama, and where the results go."""

    output: Path | None
    codes: Path | None
    hold: float | None = None  # drawn in two passes, with this share of the first one's codes (serve/two_pass.py)

    @property
    def decode(self) -> bool:
        return self.output is not None


def generate(arguments: argparse.Namespace) -> int:
    if arguments.no_decode and arguments.output is not None:
        raise InvalidRequestError(
            "--no-decode draws no picture, so -o has nothing to write; use --codes FILE.safetensors"
        )
    if arguments.no_decode and arguments.codes is None and not arguments.json:
        raise InvalidRequestError("--no-decode needs --codes FILE.safetensors or --json, or the codes would be lost")
    if not arguments.no_decode and arguments.output is None:
        raise InvalidRequestError("no output was named; add -o out.png (or --no-decode with --codes or --json)")
    if arguments.hold is not None and not arguments.two_pass:
        raise InvalidRequestError("--hold says how a second pass is drawn; add --two-pass, or leave it out")
    width, height = arguments.size or (None, None)
    folder = open_folder(arguments.model)
    values = {
        "prompts": prompts_of(arguments, folder),
        "prompt": arguments.prompt,
        "label": arguments.label,
        "width": width,
        "height": height,
        **{name: getattr(arguments, name) for name in SAMPLING},
    }
    return _run(
        Job(
            request=request_of(values, arguments.features),
            features=arguments.features,
            folder=folder,
            **settings_of(arguments),
            output=arguments.output,
            codes=arguments.codes,
            hold=(HOLD if arguments.hold is None else arguments.hold) if arguments.two_pass else None,
        )
    )


def replay(arguments: argparse.Namespace) -> int:
    record = read_record(arguments.picture)
    if record.redrawn:
        raise InvalidRequestError(
            f"{arguments.picture} was made by `panoserve redraw` from another picture and its mask, which it does not "
            f"carry; run that again with them and --seed {record.seed}"
        )
    folder = open_folder(arguments.model)
    check_same_model(record, folder, named=arguments.model is not None)
    features = Path(record.features) if record.features is not None else None
    if features is not None and features.is_file() and fingerprint_files([features]) != record.features_fingerprint:
        raise InvalidRequestError(f"features file {features} is not the one that {arguments.picture} was drawn from")
    if record.extends:
        from panoserve import cli_extend

        return cli_extend.replay(arguments, record, folder, features)
    values = {name: getattr(record, name) for name in ("prompt", "label", "prompts", "width", "height", *SAMPLING)}
    return _run(
        Job(
            request=request_of(values, features),
            features=features,
            folder=folder,
            **settings_of(arguments, record),
            output=arguments.output or arguments.picture.with_name(f"{arguments.picture.stem}-again.png"),
            codes=None,
            hold=record.hold,
        )
    )


QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR"}
SAMPLING = (
    "stride", "row_stride", "loop", "blend", "guidance", "guidance_interval", "negative_prompt", "temperature", "top_k",
    "top_p", "seed",
)  # fmt: skip


def prompts_of(arguments: argparse.Namespace, folder: ModelFolder) -> Any:
    """What --at or --prompts say, for PanoramaRequest.prompts."""
    if arguments.prompts is not None:
        if arguments.at:
            raise InvalidRequestError("got --at and --prompts; give either", "prompts")
        return load_prompts(arguments.prompts)
    entries = []
    for left, subject in arguments.at or ():
        try:
            position = float(left) if "." in left else int(left)
            entry = {"label": int(subject)} if folder.config.condition == "class" else {"prompt": subject}
        except ValueError:
            raise InvalidRequestError(
                f"got --at {left} {subject!r}; expected pixels or a share such as 0.5, then a prompt (for a "
                "class-conditional model the number of a class)",
                "prompts",
            ) from None
        entries.append({**entry, "left": position})
    return entries or None


def request_of(values: dict[str, Any], features: Path | None) -> PanoramaRequest:
    from panoserve import PanoramaRequest

    return PanoramaRequest(**values, features=None if features is None else load_features(features))


def _run(job: Job) -> int:
    """Check everything, draw, write, tell."""
    if job.output is not None:
        check_output(job.output, ".png")
    if job.codes is not None:
        check_output(job.codes, ".safetensors")
    check_folder(job)
    _check_request(job)
    panorama, coarse = _draw(job)
    fingerprint = fingerprint_model(job.folder.path)
    record = record_of(panorama.request, job.features, job.folder, fingerprint, job.context, job.dtype)
    record = replace(record, hold=job.hold)
    if panorama.truncated:
        limit = job.folder.config.caption_length
        warn(f"the prompt is longer than the {limit} tokens that the model takes; its end was not used")
    if job.codes is not None:
        write_codes(panorama.codes, job.codes, record.to_chunks())
    if job.output is not None:
        if panorama.image is None:
            raise RuntimeError("the engine returned no picture although one was asked for")
        write_png(panorama.image, job.output, record)
    _tell(panorama, coarse, record, job)
    return 0


def _check_request(job: Job) -> None:
    """Raise what the engine would raise, ten seconds earlier."""
    if job.hold is None:
        job.request.resolve(job.folder.config, job.context)
        return
    from panoserve.serve.two_pass import check_two_pass

    check_two_pass(job.request, job.folder.config, job.context, job.hold)
    if not job.folder.has_vq:
        raise ModelFolderError(
            f"model folder {job.folder.path} has no vq/, which reads the first of two passes; leave out --two-pass, or "
            "convert the checkpoint again with --vq"
        )


def check_folder(job: Job) -> None:
    if job.decode and not job.folder.has_vq:
        raise ModelFolderError(
            f"model folder {job.folder.path} has no vq/, so it cannot make pictures; ask for codes "
            "(--no-decode --codes FILE.safetensors), or convert the checkpoint again with --vq"
        )
    text = job.request.prompt is not None or job.request.prompts or job.request.negative_prompt
    if text and job.folder.config.condition == "caption" and not job.folder.has_text_encoder:
        raise ModelFolderError(
            f"model folder {job.folder.path} has no text_encoder/, so it cannot read prompts; give --features FILE, or "
            "convert the checkpoint again with --text-encoder"
        )


def check_same_model(record: DrawRecord, folder: ModelFolder, *, named: bool) -> None:
    """A picture wants its own model: another is an error if it is the default, a warning if it was named."""
    fingerprint = fingerprint_model(folder.path)
    if fingerprint != record.model_fingerprint:
        message = (
            f"the picture was drawn with model {record.model} ({record.model_fingerprint}), but {folder.path} holds "
            f"{folder.path.name} ({fingerprint})"
        )
        if not named:
            raise InvalidRequestError(f"{message}; name the right folder with --model DIR")
        warn(f"{message}; the new picture will differ")
    if record.version != __version__:
        warn(f"the picture was drawn by panoserve {record.version}, this is {__version__}; the new picture may differ")


def _draw(job: Job) -> tuple[Panorama, PanoramaStats | None]:
    """Start the engine, draw the one request, stop the engine; the counters of a first pass are the second result."""
    with quiet_engine(job.verbose):
        from panoserve import Engine

        settings = {"dtype": job.dtype, "context": job.context, "kv_cache_gib": job.kv_cache_gib}
        with Engine(job.folder.path, **settings) as engine:
            if job.hold is None:
                return engine.generate([job.request], decode=job.decode, progress=True)[0], None
            from panoserve.serve.two_pass import draw_two_pass

            [two] = draw_two_pass(engine, [job.request], hold=job.hold, decode=job.decode)
            return replace(two.panorama, request=two.request), two.coarse.stats


@contextmanager
def quiet_engine(verbose: bool) -> Iterator[TextIO]:
    """Yield the real stdout, for results; meanwhile all that vLLM, its children and C++ print goes to stderr.

    Unless `verbose`, vLLM, transformers and torch log errors only. Must be entered before vLLM is imported; a log level
    that the user set in the environment is respected.
    """
    if not verbose:
        for name, level in QUIET.items():
            os.environ.setdefault(name, level)
        logging.getLogger("vllm").setLevel(logging.ERROR)  # vLLM warns once before it reads its own setting
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr), os.fdopen(os.dup(saved), "w") as results, warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore", FutureWarning)  # vLLM's, about torch
            yield results
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def record_of(
    request: PanoramaRequest, features: Path | None, folder: ModelFolder, fingerprint: str, context: str, dtype: str
) -> DrawRecord:
    """The record of a resolved request: every value that was left open is filled in by now.

    features: the file that the request's features came from. fingerprint: the model folder's.
    """
    from panoserve.serve.prompts import parse_prompts

    named = ("prompt", "label", "width", "height", *SAMPLING)
    return DrawRecord(
        **{name: getattr(request, name) for name in named},
        prompts=[prompt.to_json() for prompt in parse_prompts(request.prompts)] if request.prompts else None,
        features=None if features is None else str(features),
        features_fingerprint=None if features is None else fingerprint_files([features]),
        context=context,
        dtype=dtype,
        model=folder.path.resolve().name,
        model_fingerprint=fingerprint,
        version=__version__,
    )


def _tell(panorama: Panorama, coarse: PanoramaStats | None, record: DrawRecord, job: Job) -> None:
    stats = asdict(panorama.stats)
    if job.json:
        print(
            json.dumps(
                {
                    "path": None if job.output is None else str(job.output),
                    "codes_path": None if job.codes is None else str(job.codes),
                    "request": asdict(record),
                    "truncated": panorama.truncated,
                    "stats": stats,
                    **({} if coarse is None else {"coarse": asdict(coarse)}),
                    "codes": panorama.codes.tolist(),
                }
            )
        )
        return
    written = " and ".join(str(path) for path in (job.output, job.codes) if path is not None)
    first = "" if coarse is None else f"a first pass of {coarse.steps} steps in {coarse.seconds:.1f} s, then "
    print(
        f"{written}: {record.width} x {record.height} pixels, seed {record.seed}, {first}{stats['drawn']} codes in "
        f"{stats['steps']} steps, {stats['seconds']:.1f} s"
    )


def warn(message: str) -> None:
    print(f"panoserve: warning: {message}", file=sys.stderr)
