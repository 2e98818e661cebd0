"""The whole HTTP front without vLLM: a client that draws by rule stands for the engine, everything else is real."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from tiny_folder import TINY_CONFIG

from panoserve.benchmarks.own_server import free_port
from panoserve.configs.wire import STATS_KEY, UNKNOWN, PanoramaArgs
from panoserve.serve.folder import ModelFolder
from panoserve.serve.http.page_routes import router as page_router
from panoserve.serve.http.routes import router
from panoserve.serve.http.service import ImageService
from panoserve.serve.http.settings import HttpSettings

MODEL = "tiny"


def fake_codes(args: PanoramaArgs) -> list[list[int]]:
    """The canvas that FakeClient draws: given codes as they are, others counted up from the seed."""
    codes = []
    for row in range(args.rows):
        given = args.given[row] if args.given else [UNKNOWN] * args.columns
        fresh = [(args.seed + row + column // 3) % TINY_CONFIG.vocab_size for column in range(args.columns)]
        codes.append([new if old == UNKNOWN else old for old, new in zip(given, fresh, strict=True)])
    return codes


class FakeClient:
    """Stands for vLLM's AsyncLLM: gives each row after `pause` seconds."""

    errored = False

    def __init__(self, pause: float = 0) -> None:
        self.pause = pause
        self.requests: list[PanoramaArgs] = []
        self.captions: list[list[Any]] = []  # of every request, one for each of its conditions
        self.aborted = 0
        self.traces: list[Any] = []
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(block_size=32, num_gpu_blocks=1000, cache_dtype="auto"),
            device_config=SimpleNamespace(device_type="cpu"),
            scheduler_config=SimpleNamespace(max_num_seqs=16),
            model_config=SimpleNamespace(dtype=torch.float32, hf_config=SimpleNamespace(streams=2)),
        )

    async def generate(
        self, prompt: Any, params: Any, request_id: str, *, priority: int = 0, trace_headers: Any = None
    ) -> AsyncGenerator[Any]:
        args = PanoramaArgs.from_extra_args(params.extra_args)
        assert args is not None
        self.requests.append(args)
        self.traces.append(trace_headers)
        self.captions.append([caption.tolist() for caption in prompt["multi_modal_data"]["caption"]])
        drawn = args.rows * args.columns
        if args.given:
            drawn = sum(row.count(UNKNOWN) for row in args.given)
        stats = {"steps": 1, "drawn": drawn, "forward_tokens": 1, "copied_slots": 0, "lanes": 1}
        try:
            for index, codes in enumerate(fake_codes(args), start=1):
                await asyncio.sleep(self.pause)
                last = index == args.rows
                yield SimpleNamespace(
                    outputs=[SimpleNamespace(finish_reason="length" if last else None, token_ids=codes)],
                    finished=last,
                    kv_transfer_params={STATS_KEY: stats} if last else None,
                )
        except BaseException:
            self.aborted += 1
            raise


class FakeModels:
    """What vLLM's server knows of its models."""

    base_model_paths = (SimpleNamespace(name=MODEL),)

    async def show_available_models(self) -> SimpleNamespace:
        card = SimpleNamespace(id=MODEL, object="model", created=1, owned_by="vllm", max_model_len=9)
        return SimpleNamespace(data=[card])


def fake_app(folder: Path, client: FakeClient | None = None, **settings: Any) -> FastAPI:
    """Our routes and the page over a tiny model folder (tiny_folder.write_tiny_folder)."""
    app = FastAPI()
    app.include_router(router)
    app.include_router(page_router)
    stand_in: Any = client or FakeClient()
    app.state.panoserve = ImageService(stand_in, ModelFolder(folder), HttpSettings(**settings), MODEL)
    app.state.openai_serving_models = FakeModels()
    return app


@contextmanager
def running_app(app: FastAPI) -> Iterator[str]:
    """The app behind a real HTTP server, in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.config.port}"
    finally:
        server.should_exit = True
        thread.join(60)
