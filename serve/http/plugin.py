"""Our routes on vLLM's API server (entry point vllm.endpoint_plugins, loaded if VLLM_PLUGINS names panoserve)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from panoserve.errors import EnvironmentProblem
from panoserve.serve.folder import ModelFolder
from panoserve.serve.http.errors import ApiError
from panoserve.serve.http.logs import log_event, set_up_logging
from panoserve.serve.http.settings import HttpSettings

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.config import VllmConfig

# Attributes of vLLM's parsed arguments, which are handed to the plug-in and stay with whoever started the server.
SETTINGS = "panoserve_settings"
ENGINE_CLIENT = "panoserve_engine_client"
# vLLM's POST routes that make sense for images; all the others take or make text.
KEPT = ("/ping", "/scale_elastic_ep", "/is_scaling_elastic_ep")
DEVELOPER = ("/reset_", "/sleep", "/wake_up", "/start_profile", "/stop_profile", "/collective_rpc", "/pause", "/resume")


class ImagesPlugin:
    """What vLLM asks of an endpoint plug-in (vllm/plugins/endpoint_plugins/interface.py)."""

    name = "panoserve"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes, and put a 404 in the place of routes that would send text to an image model."""
        from panoserve.serve.http.page_routes import router as page_router
        from panoserve.serve.http.routes import router

        text_routes = [route for route in app.routes if isinstance(route, APIRoute) and takes_text(route)]
        for path in dict.fromkeys(route.path for route in text_routes):
            app.add_api_route(path, draws_images, methods=["POST"], include_in_schema=False)
        app.include_router(router)
        app.include_router(page_router)
        app.add_exception_handler(HTTPException, no_route)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Make the service that the routes use. Raises EnvironmentProblem if the engine was not started for images."""
        from panoserve.serve.http.service import ImageService

        set_up_logging()
        check_engine(engine_client.vllm_config)
        settings: HttpSettings = getattr(args, SETTINGS, None) or HttpSettings()
        model = (args.served_model_name or [args.model])[0]
        folder = ModelFolder(Path(engine_client.vllm_config.model_config.model))
        setattr(args, ENGINE_CLIENT, engine_client)
        state.panoserve = ImageService(engine_client, folder, settings, model)
        log_event("ready", model=model, host=args.host, port=args.port)


def takes_text(route: APIRoute) -> bool:
    return "POST" in route.methods and route.path not in KEPT and not route.path.startswith(DEVELOPER)


async def draws_images(request: Request) -> Response:
    """The answer of routes that vLLM serves for language models."""
    message = f"{request.url.path} is for language models; this server draws images: POST /v1/images/generations"
    return ApiError(404, message, code="not_an_image_route").response()


async def no_route(request: Request, error: Exception) -> Response:
    """The answer where no route is, or none for the method, which Starlette says in a shape of its own."""
    assert isinstance(error, HTTPException)
    asked, headers = f"{request.method} {request.url.path}", dict(error.headers or {})
    if error.status_code == 405:
        message = f"{asked} is not possible; this path takes {headers.get('Allow', 'other methods')}"
        return ApiError(405, message, code="method_not_allowed", headers=headers).response()
    message = f"{asked}: {error.detail}; /docs lists the routes"
    return ApiError(error.status_code, message, code="route_not_found", headers=headers).response()


def check_engine(config: VllmConfig) -> None:
    """Raise EnvironmentProblem unless vLLM runs our scheduler, connector and logits processor."""
    scheduler = str(config.scheduler_config.scheduler_cls)
    connector = config.kv_transfer_config and config.kv_transfer_config.kv_connector
    processors = [str(processor) for processor in config.model_config.logits_processors or []]
    wrong = []
    if "redirect.scheduler" not in scheduler:
        wrong.append(f"--scheduler-cls is {scheduler}")
    if connector != "ShiftConnector":
        wrong.append(f"--kv-transfer-config names {connector}")
    if not any("GuidanceProcessor" in processor for processor in processors):
        wrong.append("--logits-processors lacks GuidanceProcessor")
    if wrong:
        raise EnvironmentProblem(
            f"{'; '.join(wrong)}; start the server with `panoserve serve`, or with the flags that docs/serving.md lists"
        )
