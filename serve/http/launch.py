"""Start vLLM's API server for images: its parser with our defaults, its own flags passed through, our plug-in named."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NoReturn

from panoserve.errors import EnvironmentProblem, ModelFolderError, PanoramaFailedError
from panoserve.serve.folder import ModelFolder
from panoserve.serve.http.plugin import ENGINE_CLIENT, SETTINGS
from panoserve.serve.http.settings import HttpSettings
from panoserve.serve.settings import set_environment, starting

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

PLUGIN = "panoserve"
MIDDLEWARE = "panoserve.serve.http.middleware.OpenAIErrors"
# What makes vLLM draw images; another value of any of these is another engine than ours.
FIXED = (
    "model",
    "scheduler_cls",
    "kv_transfer_config",
    "logits_processors",
    "skip_tokenizer_init",
    "enable_prefix_caching",
)


def set_server_environment() -> None:
    """Environment variables that must be set before vLLM is imported; explicit ones of the user's win."""
    set_environment()
    named = os.environ.get("VLLM_PLUGINS")
    if named is None:
        os.environ["VLLM_PLUGINS"] = PLUGIN
    elif PLUGIN not in named.split(","):
        raise EnvironmentProblem(
            f"VLLM_PLUGINS is {named!r}, which leaves {PLUGIN} out; add it ({named},{PLUGIN}) or unset the variable"
        )
    # By default vLLM binds its threads to cores and holds one back for itself and one for the KV connector, which it
    # takes for a network transport: on two cores, all of them (utils/ompmultiprocessing.py).
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # as vLLM's own command does
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def check_installed() -> None:
    """Raise EnvironmentProblem unless vLLM will find our routes: it only logs a plug-in that it cannot load."""
    found = entry_points(group="vllm.endpoint_plugins", name=PLUGIN)
    if not found:
        raise EnvironmentProblem("this installation of panoserve does not know its server yet; run `make setup` again")
    next(iter(found)).load()


def server_arguments(
    folder: ModelFolder, engine: dict[str, Any], settings: HttpSettings, host: str, port: int, flags: Sequence[str]
) -> Namespace:
    """vLLM's arguments: `engine` (settings.engine_args) and our defaults, then `flags`, vLLM's own, which win.

    Raises EnvironmentProblem for flags that vLLM does not know, and for those that would make it another engine.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class OneLineParser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise EnvironmentProblem(f"{message}; flags that panoserve serve does not list are passed to vLLM")

    defaults = {
        **engine,
        "served_model_name": [folder.path.resolve().name],
        "host": host,
        "port": port,
        "disable_log_stats": False,  # vLLM's own metrics
        "disable_uvicorn_access_log": True,  # our log has a line for every panorama
        "api_server_count": 1,
        "middleware": [MIDDLEWARE],  # the user's go around it
    }
    parser = make_arg_parser(OneLineParser(prog="panoserve serve", add_help=False))
    parser.set_defaults(**defaults)
    arguments: Namespace = parser.parse_args(list(flags))
    if arguments.model_tag is not None:
        raise EnvironmentProblem(f"unexpected argument {arguments.model_tag!r}; the model folder goes to --model")
    for name in FIXED:
        if getattr(arguments, name) != defaults[name]:
            flag = "--" + name.replace("_", "-")
            raise EnvironmentProblem(f"{flag} cannot be given: panoserve serve sets it, and no image is drawn without")
    if arguments.api_server_count != 1 or arguments.headless:
        raise EnvironmentProblem(
            "one API server process is supported, since queue and stored pictures are its own: leave out "
            "--api-server-count and --headless; --data-parallel-size works with one"
        )
    try:
        validate_parsed_serve_args(arguments)
    except (ValueError, TypeError) as error:
        raise EnvironmentProblem(f"vLLM refuses its flags: {error}") from None
    setattr(arguments, SETTINGS, settings)
    return arguments


def died(client: AsyncLLM) -> bool:
    """Whether an engine process ended by itself, and not because the server was told to stop."""
    return getattr(client.engine_core.resources.engine_manager, "failed_proc_name", None) is not None


def serve(
    folder: ModelFolder, engine: dict[str, Any], settings: HttpSettings, host: str, port: int, flags: Sequence[str]
) -> None:
    """Serve until a signal comes. Raises PanoramaFailedError if the engine process dies, so that the exit code says so.

    `set_server_environment` must have been called. Raises EnvironmentProblem if vLLM does not start.
    """
    if not folder.has_vq:
        raise ModelFolderError(
            f"{folder.path} holds no vq/, so it cannot make pictures; convert the checkpoint again with --vq"
        )
    if folder.config.condition == "caption" and not folder.has_text_encoder:
        raise ModelFolderError(
            f"{folder.path} holds no text_encoder/, and HTTP knows no other way to say what to draw; convert the "
            "checkpoint again with --text-encoder"
        )
    check_installed()
    arguments = server_arguments(folder, engine, settings, host, port, flags)
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    try:
        uvloop.run(run_server(arguments))
    except Exception:
        if not hasattr(arguments, ENGINE_CLIENT):
            with starting():
                raise
        if not died(getattr(arguments, ENGINE_CLIENT)):
            raise
    if died(getattr(arguments, ENGINE_CLIENT)):
        raise PanoramaFailedError("the engine process died; vLLM's log above says why")
