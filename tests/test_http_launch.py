"""How the server is started: whose flags go where, and what is refused before vLLM is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_folder import write_tiny_folder

from panoserve.cli import build_parser
from panoserve.errors import EnvironmentProblem, ModelFolderError, PanoramaFailedError
from panoserve.serve.folder import ModelFolder
from panoserve.serve.http import launch
from panoserve.serve.http.plugin import ENGINE_CLIENT, SETTINGS, ImagesPlugin, check_engine
from panoserve.serve.http.settings import HttpSettings
from panoserve.serve.settings import engine_args

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(write_tiny_folder(tmp_path_factory.mktemp("launch") / "tiny"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Whatever is set here is gone afterwards."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("VLLM_PLUGINS", "VLLM_CPU_OMP_THREADS_BIND"):
        os.environ.pop(name, None)
    return monkeypatch


def arguments(folder: ModelFolder, *flags: str) -> Any:
    engine = engine_args(
        folder,
        dtype="float32",
        context="reuse",
        kv_cache_gib=None,
        max_lanes=4,
        async_scheduling=False,
        guidance=True,
        load_format="auto",
    )
    return launch.server_arguments(folder, engine, HttpSettings(url_mib=1), "127.0.0.1", 8000, flags)


def test_other_flags_are_kept_for_vllm() -> None:
    parsed = build_parser().parse_args(["serve", "--port", "8001", "--api-key", "K", "--tensor-parallel-size=2", "-v"])
    assert (parsed.port, parsed.verbose) == (8001, True)
    assert parsed.vllm_flags == ["--api-key", "K", "--tensor-parallel-size=2"]
    with pytest.raises(SystemExit):  # only serve has somebody to pass them to
        build_parser().parse_args(["info", "--api-key", "K"])


def test_vllms_arguments_are_ours_and_then_the_users(folder: ModelFolder) -> None:
    made = arguments(folder, "--api-key", "K", "--tensor-parallel-size", "2", "--served-model-name", "pano")
    assert (made.model, made.host, made.port) == (str(folder.path), "127.0.0.1", 8000)
    assert (made.max_num_seqs, made.dtype, made.skip_tokenizer_init) == (4, "float32", True)
    assert (made.api_key, made.tensor_parallel_size, made.served_model_name) == (["K"], 2, ["pano"])
    assert made.api_server_count == 1
    assert made.middleware == arguments(folder).middleware == [launch.MIDDLEWARE]
    assert arguments(folder, "--middleware", "a.B").middleware == [launch.MIDDLEWARE, "a.B"]
    assert getattr(made, SETTINGS).url_mib == 1
    assert arguments(folder).served_model_name == ["tiny"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--no-such-flag",), "no-such-flag"),
        (("--tensor-parallel-size", "two"), "two"),
        (("positional",), "'positional'"),
        (("--scheduler-cls", "a.B"), "--scheduler-cls cannot be given"),
        (("--enable-prefix-caching",), "--enable-prefix-caching cannot be given"),
        (
            ("--kv-transfer-config", '{"kv_connector": "X", "kv_role": "kv_both"}'),
            "--kv-transfer-config cannot be given",
        ),
        (("--api-server-count", "2"), "one API server"),
        (("--headless",), "one API server"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_flags_that_are_refused(folder: ModelFolder, flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        arguments(folder, *flags)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_documented_flags_of_vllms_own_command_are_ours(folder: ModelFolder) -> None:
    """docs/serving.md has them for `vllm serve`; they must make the engine that `panoserve serve` makes."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```sh\n(VLLM_PLUGINS.*?)```", page, re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "))
    parser = make_arg_parser(FlexibleArgumentParser())
    documented, ours = vars(parser.parse_args(words[words.index("serve") + 1 :])), vars(arguments(folder))
    assert words[0] == f"VLLM_PLUGINS={launch.PLUGIN}"
    connector = documented["kv_transfer_config"]
    documented["kv_transfer_config"] = {name: getattr(connector, name) for name in ours["kv_transfer_config"]}
    alike = [*launch.FIXED[1:], "enforce_eager", "async_scheduling", "block_size", "hf_overrides", "middleware"]
    assert {name: documented[name] for name in alike} == {name: ours[name] for name in alike}


def test_the_container_starts_the_server() -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    entry, command = (json.loads(line) for line in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE))
    assert entry[:3] == [".venv/bin/python", "-m", "panoserve.cli"]
    parsed = build_parser().parse_args(entry[3:] + command)
    assert (parsed.host, parsed.port, parsed.vllm_flags) == ("0.0.0.0", 8000, [])
    for path in re.findall(r"(requirements/\S+)", text):
        assert (ROOT / path.rstrip(",")).exists(), path


def test_the_environment_names_our_plugin_and_binds_no_threads(environment: pytest.MonkeyPatch) -> None:
    launch.set_server_environment()
    assert os.environ["VLLM_PLUGINS"] == "panoserve"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_the_users_own_environment_wins(environment: pytest.MonkeyPatch) -> None:
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_PLUGINS": "other,panoserve"}
    launch.set_server_environment()
    assert (os.environ["VLLM_CPU_OMP_THREADS_BIND"], os.environ["VLLM_PLUGINS"]) == ("0-1", "other,panoserve")
    os.environ["VLLM_PLUGINS"] = "other"
    with pytest.raises(EnvironmentProblem, match="add it \\(other,panoserve\\)"):
        launch.set_server_environment()


def test_a_model_that_makes_no_pictures_is_not_served(tmp_path: Path) -> None:
    write_tiny_folder(tmp_path / "tiny")
    (tmp_path / "tiny" / "vq" / "config.json").unlink()
    with pytest.raises(ModelFolderError, match="no vq/"):
        launch.serve(ModelFolder(tmp_path / "tiny"), {}, HttpSettings(), "127.0.0.1", 8000, [])


def test_a_model_that_no_prompt_reaches_is_not_served(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_folder(tmp_path / "tiny"))
    shutil.rmtree(folder.path / "text_encoder")
    with pytest.raises(ModelFolderError, match="--text-encoder"):
        launch.serve(folder, {}, HttpSettings(), "127.0.0.1", 8000, [])


class Client:
    """Stands for vLLM's AsyncLLM, of which `died` reads one name."""

    def __init__(self, failed: str | None) -> None:
        self.engine_core = SimpleNamespace(
            resources=SimpleNamespace(engine_manager=SimpleNamespace(failed_proc_name=failed))
        )


@pytest.mark.parametrize(
    ("client", "error", "expected"),
    [
        (None, OSError("port in use"), (EnvironmentProblem, "vLLM did not start: port in use")),
        (Client(None), OSError("disk full"), (OSError, "^disk full$")),
        (Client("EngineCore_0"), RuntimeError("gone"), (PanoramaFailedError, "the engine process died")),
        (Client("EngineCore_0"), None, (PanoramaFailedError, "the engine process died")),
    ],
    ids=["start", "later", "died loudly", "died quietly"],
)
def test_how_a_server_ends(
    folder: ModelFolder,
    client: Any,
    error: Exception | None,
    expected: tuple[type[Exception], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.entrypoints.launchers.api_server import entry

    async def run_server(arguments: Any) -> None:
        if client is not None:
            setattr(arguments, ENGINE_CLIENT, client)
        if error is not None:
            raise error

    monkeypatch.setattr(entry, "run_server", run_server)
    monkeypatch.setattr(launch, "server_arguments", lambda *_: Namespace())
    with pytest.raises(expected[0], match=expected[1]):
        launch.serve(folder, {}, HttpSettings(), "127.0.0.1", 8000, [])


def test_an_installation_without_our_entry_point_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.check_installed()
    monkeypatch.setattr(launch, "entry_points", lambda **_: [])
    with pytest.raises(EnvironmentProblem, match="make setup"):
        launch.check_installed()


def test_another_engine_is_refused() -> None:
    """`vllm serve` with our plug-in but without our flags would draw nonsense."""
    from types import SimpleNamespace

    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls="panoserve.redirect.scheduler.RedirectScheduler"),
        kv_transfer_config=SimpleNamespace(kv_connector="ShiftConnector"),
        model_config=SimpleNamespace(logits_processors=["panoserve.models.guidance:GuidanceProcessor"]),
    )
    check_engine(config)
    config.scheduler_config.scheduler_cls = None
    config.kv_transfer_config = None
    with pytest.raises(EnvironmentProblem, match=r"--scheduler-cls is None; --kv-transfer-config names None; start"):
        check_engine(config)


def test_text_routes_are_replaced() -> None:
    """Nothing of vLLM's language API is left that could send a plain request to an image model."""
    from fastapi import FastAPI
    from fastapi.routing import APIRoute
    from fastapi.testclient import TestClient

    app = FastAPI()
    for path in ("/v1/completions", "/invocations", "/v1/responses/{response_id}/cancel", "/ping", "/sleep"):
        app.add_api_route(path, lambda: "vLLM's", methods=["POST"])
    before = len(app.routes)
    ImagesPlugin().attach_router(app)
    ours = [route for route in app.routes[before:] if isinstance(route, APIRoute)]
    posts = {route.path for route in ours if "POST" in route.methods}
    assert posts == {
        "/v1/completions",
        "/invocations",
        "/v1/responses/{response_id}/cancel",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/endless",
        "/v1/images/endless/{name}/steer",
    }
    app.router.routes[:] = ours  # as vLLM does with those that are overridden
    answer = TestClient(app).post("/v1/completions", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_an_image_route")
