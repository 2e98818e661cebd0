"""The `panoserve` command: the parser, and the one place where an error becomes a line and an exit code.

Exit codes: 0 done, 1 the engine failed or `doctor` found a problem, 2 bad input or a bad installation, 130 interrupted.
The commands themselves are in cli_draw.py, cli_batch.py, cli_serve.py, cli_model.py and doctor.py; torch and vLLM are
imported by those that need them, so that `panoserve --help` and `panoserve info` answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from panoserve.cli_options import add_engine_options, add_sampling, add_subject, gib, place, size
from panoserve.errors import PanoserveError
from panoserve.serve.settings import DTYPES
from panoserve.serve.two_pass import HOLD
from panoserve.version import __version__


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without guessed abbreviations.

    If `others` is set, arguments that the parser does not know are no error but the value of that name.
    """

    others: str | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        if self.others is None:
            return namespace, unknown
        setattr(namespace, self.others, unknown)
        return namespace, []

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"panoserve: error: {message} (see {self.prog} --help)\n")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], about: str, detail: str = ""
) -> Parser:
    parser: Parser = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}. {detail}".strip()
    )
    parser.set_defaults(run=run)
    return parser


def _generate(commands: Any) -> None:
    from panoserve import cli_draw

    parser = _command(
        commands,
        "generate",
        cli_draw.generate,
        "draw one panorama",
        "Say what to draw with a prompt, --label or --features, as the model asks for (panoserve info).",
    )
    add_subject(parser)
    parser.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="pixels, in steps of one code (default: one crop high, six crops wide)",
    )
    parser.add_argument(
        "--loop", action="store_true", help="a view all around: the right edge meets the left one, in the picture too"
    )
    parser.add_argument(
        "--two-pass",
        action="store_true",
        help="draw a coarse panorama first, one crop high (or wide), and then this one, guided by it; for panoramas of "
        "more than one crop each way",
    )
    parser.add_argument(
        "--hold",
        type=float,
        metavar="P",
        help=f"with --two-pass: share of the coarse picture's codes that is kept inside crops (default: {HOLD:g})",
    )
    add_sampling(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PNG",
        help="the picture to write; its folder is made, a file of that name is replaced",
    )
    parser.add_argument(
        "--codes", type=Path, metavar="FILE", help="also write the codes [rows, columns] as .safetensors"
    )
    parser.add_argument(
        "--no-decode", action="store_true", help="codes only: no picture (a model folder without vq needs it)"
    )
    parser.add_argument(
        "--at",
        nargs=2,
        action="append",
        metavar=("PLACE", "PROMPT"),
        help="another prompt (or class) from this column on: pixels, or with a decimal point a share of the width; "
        "may be repeated, as in --at 0.0 'a beach' --at 0.5 'a city at night'",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="YAML",
        help="a list of prompts with their places: prompt (or label), left, right, top, bottom, as in --at",
    )
    parser.add_argument(
        "--blend",
        type=place,
        default=0,
        metavar="PLACE",
        help="width over which prompts shade into each other (default: 0)",
    )
    add_engine_options(parser, replay=False)


def _endless(commands: Any) -> None:
    from panoserve import cli_endless

    parser = _command(commands, "endless", cli_endless.endless, cli_endless.ABOUT, cli_endless.DETAIL)
    add_subject(parser)
    cli_endless.add_arguments(parser)
    add_sampling(parser)
    add_engine_options(parser, replay=False, resume=True)


def _batch(commands: Any) -> None:
    from panoserve import cli_batch

    parser = _command(
        commands,
        "batch",
        cli_batch.batch,
        "draw a file of jobs into a folder",
        "A job has the fields of PanoramaRequest, and id, size and the path of a features file. Each becomes ID.png "
        "with a sidecar ID.json, or ID.error.json; results.jsonl lists all. The exit code is 1 if any job is not done.",
    )
    parser.add_argument("jobs", type=Path, help="the jobs: .jsonl (one object a line), .csv or .yaml")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="folder to write; it is made")
    parser.add_argument("--resume", action="store_true", help="go on in a folder that holds finished jobs of this file")
    parser.add_argument(
        "--shard",
        type=cli_batch.shard,
        default=(1, 1),
        metavar="I/N",
        help="draw the I-th of N shares of the jobs, which are about as long as each other, for N machines that share "
        "the folder (default: 1/1, all)",
    )
    parser.add_argument(
        "--engines",
        type=cli_batch.engines,
        default=1,
        metavar="N",
        help="divide the jobs, by size, among N engines with cores of their own: on a CPU small "
        "models draw more with a core each; --kv-cache-gib is each one's (default: 1)",
    )
    parser.add_argument(
        "--merge", action="store_true", help="draw nothing: write results.jsonl from what all shards have done"
    )
    add_engine_options(parser, replay=False)


def _replay(commands: Any) -> None:
    from panoserve import cli_draw

    parser = _command(
        commands,
        "replay",
        cli_draw.replay,
        "draw a picture again from what it says about itself",
        "Same model, context, dtype and software give the same codes; a difference that is known is said aloud.",
    )
    parser.add_argument("picture", type=Path, help="a PNG written by panoserve generate or extend")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PNG", help="where to write it (default: PICTURE with -again before .png)"
    )
    add_engine_options(parser, replay=True)


def _extend(commands: Any) -> None:
    from panoserve import cli_extend

    parser = _command(commands, "extend", cli_extend.extend, cli_extend.ABOUT, cli_extend.DETAIL)
    cli_extend.add_arguments(parser)
    add_sampling(
        parser,
        stride="a quarter of it",
        row_stride="as --stride, or three quarters of the grid side without it",
        guidance="1.5, or the model's if that is lower",
    )
    add_engine_options(parser, replay=False)


def _redraw(commands: Any) -> None:
    from panoserve import cli_redraw

    parser = _command(commands, "redraw", cli_redraw.redraw, cli_redraw.ABOUT, cli_redraw.DETAIL)
    cli_redraw.add_arguments(parser)
    add_sampling(parser)
    add_engine_options(parser, replay=False)


def _plan(commands: Any) -> None:
    from panoserve import cli_plan

    parser = _command(commands, "plan", cli_plan.plan, cli_plan.ABOUT, cli_plan.DETAIL)
    parser.add_argument("--size", type=size, metavar="WxH", help="pixels (default: one crop high, six crops wide)")
    cli_plan.add_arguments(parser)


def _serve(commands: Any) -> None:
    from panoserve import cli_serve

    parser = _command(
        commands,
        "serve",
        cli_serve.serve,
        "serve the model over HTTP",
        "OpenAI's image API, a page to draw on, metrics (docs/serving.md). Other flags are passed to vLLM's server.",
    )
    cli_serve.add_arguments(parser, gib)


def _info(commands: Any) -> None:
    from panoserve import cli_model

    parser = _command(commands, "info", cli_model.info, "say what a model folder holds")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder (default: assets/pano-mini of the checkout)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _convert(commands: Any) -> None:
    from panoserve import cli_model

    parser = _command(commands, "convert", cli_model.convert, "turn a published checkpoint into a model folder")
    families = parser.add_subparsers(dest="family", required=True, metavar="FAMILY")
    llamagen = _command(
        families,
        "llamagen",
        cli_model.convert,
        "convert a LlamaGen checkpoint, class- or text-conditional, of any size",
        "Kind and size are read from the tensors; the grid, and the heads of unpublished sizes, from the published "
        "file's name or the flags.",
    )
    llamagen.add_argument("checkpoint", type=Path, metavar="CKPT.pt", help="the transformer")
    llamagen.add_argument(
        "output", type=Path, metavar="OUT_DIR", help="the model folder to write; must not exist, or be empty"
    )
    llamagen.add_argument(
        "--vq",
        type=Path,
        metavar="VQ.pt",
        help="the VQ tokenizer that belongs to it; without it only codes can be served",
    )
    llamagen.add_argument(
        "--text-encoder", type=Path, metavar="DIR", help="a T5 encoder with its tokenizer, as transformers saves it"
    )
    llamagen.add_argument("--grid", type=int, metavar="G", help="token grid side: 16, 24 or 32")
    llamagen.add_argument("--heads", type=int, metavar="N", help="attention heads, for a size that was never published")
    llamagen.add_argument(
        "--downsample", type=int, metavar="D", help="pixels a code, where no --vq says it (default: 16)"
    )
    llamagen.add_argument(
        "--no-null-class", action="store_true", help="the class table has no last row for `no class`: no guidance"
    )
    llamagen.add_argument("--dtype", choices=DTYPES, help="number format to store (default: the checkpoint's)")
    llamagen.add_argument("--overwrite", action="store_true", help="replace a model folder that is there")


def _doctor(commands: Any) -> None:
    from panoserve import doctor

    parser = _command(
        commands,
        "doctor",
        doctor.doctor,
        "check this installation and say what is in use and what is wrong",
        "Exit code 1 when a check fails; warnings do not count.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bench(commands: Any) -> None:
    from panoserve import cli_bench

    parser: Parser = commands.add_parser("bench", help="reports of benchmarks", description="Reports of benchmarks.")
    reports = parser.add_subparsers(required=True, metavar="WHAT", parser_class=Parser)
    cli_bench.add_arguments(_command(reports, "report", cli_bench.report, cli_bench.ABOUT, cli_bench.DETAIL))


def build_parser() -> Parser:
    """The whole command line; docs/cli.md is made from it."""
    parser = Parser(
        prog="panoserve", description="Draw panoramas of any size with autoregressive image models on vLLM."
    )
    parser.add_argument("--version", action="version", version=f"panoserve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    drawing = (_generate, _extend, _redraw, _endless, _batch, _replay)
    for add in (*drawing, _plan, _serve, _info, _convert, _doctor, _bench):
        add(commands)
    return parser


def _report(error: BaseException, *, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, PanoserveError)
    hint = "" if known or verbose else " (run with -v for details, or panoserve doctor to check the installation)"
    print(f"panoserve: error: {text if known else f'{type(error).__name__}: {text}'}{hint}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never lets a traceback reach a user who did not ask for it."""
    arguments = build_parser().parse_args(argv)
    verbose = getattr(arguments, "verbose", False)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except PanoserveError as error:
        _report(error, verbose=verbose)
        return error.exit_code
    except KeyboardInterrupt:
        print("panoserve: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our stdout has gone, as in `panoserve info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last line of defence: one line, not a traceback
        _report(error, verbose=verbose)
        return 1


if __name__ == "__main__":
    sys.exit(main())
