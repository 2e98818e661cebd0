"""Options that several commands take, and the kinds of value that they hold."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.settings import DTYPES


def size(text: str) -> tuple[int, int]:
    """`1152x192` as (width, height) in pixels."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT in pixels, such as 1152x192")
    return int(width), int(height)


def place(text: str) -> int | float:
    """A place along a side: whole pixels, or with a decimal point a share."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected pixels, or a share with a decimal point, such as 0.5"
        ) from None


def gib(text: str) -> float:
    """A size in GiB."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of GiB above 0, such as 2.5")
    return value


def add_subject(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    """What to draw; the prompt is the command's positional argument, or `--prompt` where a picture is that."""
    prompt = "what to draw, for a model with a text encoder"
    if positional:
        parser.add_argument("prompt", nargs="?", help=prompt)
    else:
        parser.add_argument("--prompt", help=prompt)
    parser.add_argument("--label", type=int, metavar="N", help="class to draw, for a class-conditional model")
    parser.add_argument(
        "--features", type=Path, metavar="FILE", help=".npy or .safetensors with caption features [n, caption_dim]"
    )


def add_sampling(
    parser: argparse.ArgumentParser,
    stride: str = "three quarters of it",
    row_stride: str = "as --stride",
    guidance: str = "the model's",
) -> None:
    """How crops stand, and how their codes are drawn; what the defaults are, in words."""
    parser.add_argument(
        "--stride",
        type=int,
        metavar="C",
        help=f"columns a crop adds, 1 to the grid side (default: {stride})",
    )
    parser.add_argument(
        "--row-stride",
        type=int,
        metavar="R",
        help=f"rows a crop adds where the canvas is taller (default: {row_stride})",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="same seed, same picture (default: a random one, which is printed)"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="S",
        help=f"classifier-free guidance scale; 1 or less is off (default: {guidance})",
    )
    parser.add_argument(
        "--guidance-interval",
        type=int,
        default=-1,
        metavar="I",
        help="guide only codes 0 to I + 1 of each crop, counted as upstream does (default -1: all)",
    )
    parser.add_argument(
        "--negative",
        dest="negative_prompt",
        metavar="PROMPT",
        help="what guidance leads away from, for a model with a text encoder (default: nothing in particular)",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's)")
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="draw from the K likeliest codes; 0 is all (default: the model's)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest codes of total probability P (default: the model's)",
    )


def add_engine_options(parser: argparse.ArgumentParser, *, replay: bool, resume: bool = False) -> None:
    """Where and how to draw; `replay` takes the defaults from the picture, `resume` if there is one."""
    default = "as drawn" if replay else "%s, or as drawn before" if resume else "%s"
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder (default: assets/pano-mini of the checkout)"
    )
    parser.add_argument(
        "--context",
        choices=CONTEXTS,
        default=None if replay or resume else "reuse",
        help="how a crop gets the keys and values of codes it is given: copied and rotated from its parent (reuse, "
        f"faster), or computed again (recompute) (default: {default.replace('%s', 'reuse')})",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default=None if replay or resume else "bfloat16",
        help=f"number format of weights and cache (default: {default.replace('%s', 'bfloat16')})",
    )
    parser.add_argument(
        "--kv-cache-gib",
        type=gib,
        metavar="G",
        help="size of the KV cache in GiB (default: what 64 crops at once take, at most 40 %% of free memory)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object, and nothing else, on stdout",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show vLLM's log, and a traceback when something breaks"
    )
