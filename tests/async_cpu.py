"""Draw panoramas with async scheduling, which vLLM allows on a GPU only, in a process of its own on the CPU.

vLLM's CPU platform turns async scheduling off, and its output objects use CUDA streams and events. This script puts the
setting back and gives those classes empty stand-ins; everything else is the real engine. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from golden_models import golden_model, write_folder
from reference_drawer import draw_greedily

from panoserve import Engine, PanoramaRequest
from panoserve.redirect.scheduler import AsyncRedirectScheduler
from panoserve.serve.settings import set_environment


def allow_async_on_the_cpu() -> None:
    set_environment()
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    nothing = SimpleNamespace(
        wait_stream=lambda *_: None, record=lambda *_: None, synchronize=lambda *_: None, wait=lambda *_: None
    )
    torch.cuda.Stream = torch.cuda.Event = lambda *_, **__: nothing
    torch.cuda.current_stream = lambda *_: nothing
    torch.cuda.stream = lambda *_: nullcontext()


def main(golden: str, folder: str) -> None:
    allow_async_on_the_cpu()
    case = torch.load(golden, weights_only=True)["c2i"]
    model = golden_model(case)
    mismatches = {}
    with Engine(write_folder(model, Path(folder)), dtype="float32", max_lanes=16, async_scheduling=True) as engine:
        scheduler = engine._engine.engine_core.engine_core.scheduler
        assert isinstance(scheduler, AsyncRedirectScheduler)
        assert engine._engine.engine_core.engine_core.batch_queue is not None, "steps do not overlap"
        for context in ("reuse", "recompute"):
            requests = [
                PanoramaRequest(
                    label=label,
                    width=16 * columns,
                    height=64,
                    stride=stride,
                    guidance=2.0,
                    guidance_interval=interval,
                    temperature=0.0,
                    context=context,
                )
                for label, columns, stride, interval in ((3, 16, 3, -1), (7, 9, 1, 5), (5, 12, 2, -1))
            ]
            results = engine.generate(requests, decode=False, progress=False)
            mismatches[context] = [
                int((result.codes != draw_greedily(model, request)).sum())
                for request, result in zip(requests, results, strict=True)
            ]
        blocks = scheduler.kv_cache_manager.block_pool
        left = len(scheduler.requests) + blocks.num_gpu_blocks - 1 - blocks.get_num_free_blocks()
    print(json.dumps({"mismatches": mismatches, "left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
