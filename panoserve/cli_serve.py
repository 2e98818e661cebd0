"""`panoserve serve`: the HTTP server, its own flags, and vLLM's behind them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from panoserve.cli_model import open_folder
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.http.settings import HttpSettings
from panoserve.serve.settings import CACHE_DTYPES, DEFAULT_LANES, DTYPES

if TYPE_CHECKING:
    from panoserve.cli import Parser

DEFAULTS = HttpSettings()
# vLLM warns of every setting that makes it draw images: a custom scheduler, no tokenizer to warm a chat template up
# with, and so on. Our own events are logged in any case, and so are uvicorn's.
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def add_arguments(parser: Parser, gib: Callable[[str], float]) -> None:
    parser.others = "vllm_flags"
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder (default: assets/pano-mini of the checkout)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on (default: 8000)")
    parser.add_argument(
        "--context",
        choices=CONTEXTS,
        default=DEFAULTS.context,
        help="how a crop gets the keys and values of codes it is given, where a request does not say: copied and "
        f"rotated from its parent (reuse), or computed again (recompute); default {DEFAULTS.context}",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="bfloat16",
        help="number format of weights and cache (default: bfloat16)",
    )
    parser.add_argument(
        "--kv-cache-gib",
        type=gib,
        metavar="G",
        help="size of the KV cache in GiB (default: what --max-lanes crops take, at most 40 %% of free memory)",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=CACHE_DTYPES,
        default="auto",
        help="number format of the cache: as --dtype, or fp8, which takes half the memory (default: auto)",
    )
    parser.add_argument(
        "--max-lanes",
        type=int,
        metavar="N",
        help=f"most crops drawn at once, over all requests (default: {DEFAULT_LANES})",
    )
    parser.add_argument(
        "--max-queue-codes",
        type=int,
        default=DEFAULTS.max_queue_codes,
        metavar="N",
        help="codes that may wait to be drawn, over all requests, before further ones are answered 429 "
        f"(default: {DEFAULTS.max_queue_codes})",
    )
    parser.add_argument(
        "--url-minutes",
        type=float,
        default=DEFAULTS.url_minutes,
        metavar="M",
        help=f"how long a picture asked for as a URL can be fetched (default: {DEFAULTS.url_minutes:g})",
    )
    parser.add_argument(
        "--url-mib",
        type=float,
        default=DEFAULTS.url_mib,
        metavar="M",
        help=f"memory for such pictures in MiB; the oldest go first (default: {DEFAULTS.url_mib:g})",
    )
    parser.add_argument(
        "--decode-memory-gib",
        type=gib,
        default=DEFAULTS.decode_memory_gib,
        metavar="G",
        help="memory for the activations of a picture while it is decoded; larger pictures are decoded in strips "
        f"(default: {DEFAULTS.decode_memory_gib:g})",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show all of vLLM's log")


def serve(arguments: argparse.Namespace) -> int:
    from panoserve.serve.http import launch

    folder = open_folder(arguments.model)
    settings = HttpSettings(**{field.name: getattr(arguments, field.name) for field in fields(HttpSettings)})
    launch.set_server_environment()
    if not arguments.verbose:
        for name, level in QUIET.items():
            os.environ.setdefault(name, level)
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # it warns before it reads its setting
    print(f"panoserve: starting {folder.path}; the log says when it is ready", file=sys.stderr)
    from panoserve.serve.settings import engine_args

    engine = engine_args(
        folder,
        dtype=arguments.dtype,
        context=arguments.context,
        kv_cache_gib=arguments.kv_cache_gib,
        max_lanes=arguments.max_lanes,
        async_scheduling=False,
        guidance=True,
        load_format="auto",
        kv_cache_dtype=arguments.kv_cache_dtype,
    )
    launch.serve(folder, engine, settings, arguments.host, arguments.port, arguments.vllm_flags)
    return 0
