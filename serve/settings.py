"""How vLLM is started for a LlamaGen model: one place for every flag and environment variable we depend on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from panoserve.configs.model import ModelConfig
from panoserve.errors import CacheTooSmallError, EnvironmentProblem, PanoserveError
from panoserve.redirect.plan import CONTEXTS
from panoserve.serve.folder import ModelFolder

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
CACHE_DTYPES = ("auto", "fp8")  # `auto` is the model's
DEFAULT_LANES = 64
BLOCK_SIZE = 32  # slots; the smallest that vLLM's CPU attention takes, hence the least waste per lane
MEMORY_SHARE = 0.4  # of the free memory, the most that the KV cache takes unless it is told otherwise
GIB = 2**30


def set_environment() -> None:
    """Environment variables that must be set before vLLM is imported; explicit ones of the user's win."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # V2 has another logits processor interface (design.md 3)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # Engine decides; AsyncLLM always has a process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def starting() -> Iterator[None]:
    """Turn vLLM's refusals at start-up into one clear error."""
    try:
        yield
    except PanoserveError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise EnvironmentProblem(
            f"vLLM did not start: {error}; `panoserve doctor` checks the installation, -v shows vLLM's log"
        ) from error


def lane_blocks(config: ModelConfig) -> int:
    """KV blocks of one lane's whole window, with the longest prefix."""
    return -(-(config.max_prefix + config.grid.codes) // BLOCK_SIZE)


def block_bytes(config: ModelConfig, itemsize: int, streams: int) -> int:
    """Bytes of one KV block over all layers: keys and values of both guidance streams."""
    from panoserve.models.hf_config import padded_head_dim

    heads = streams * config.num_attention_heads
    return BLOCK_SIZE * config.num_hidden_layers * 2 * heads * padded_head_dim(config.head_dim) * itemsize


def free_memory() -> int:
    """Bytes that can be had now: of the GPU if there is one, else of the machine."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def cache_bytes(config: ModelConfig, itemsize: int, streams: int, lanes: int, kv_cache_gib: float | None) -> int:
    """Size of the KV cache, of which a number takes `itemsize`. Raises CacheTooSmallError or EnvironmentProblem."""
    block = block_bytes(config, itemsize, streams)
    one_lane = (lane_blocks(config) + 1) * block  # vLLM keeps one block for itself
    free = free_memory()
    if kv_cache_gib is None:
        wanted = min((lanes * lane_blocks(config) + 1) * block, int(free * MEMORY_SHARE))
    else:
        wanted = int(kv_cache_gib * GIB)
        if wanted > free:
            raise EnvironmentProblem(
                f"kv_cache_gib is {kv_cache_gib:g}, but only {free / GIB:.1f} GiB of memory are free; ask for less"
            )
    if wanted < one_lane:
        raise CacheTooSmallError(
            f"a KV cache of {wanted / GIB:.4f} GiB cannot hold one lane of this model, which takes "
            f"{one_lane / GIB:.4f} GiB; set kv_cache_gib to at least that, or twice that for context 'reuse'"
        )
    return wanted


def engine_args(
    folder: ModelFolder,
    *,
    dtype: str,
    context: str,
    kv_cache_gib: float | None,
    max_lanes: int | None,
    async_scheduling: bool,
    guidance: bool,
    load_format: str,
    kv_cache_dtype: str = "auto",
) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs and AsyncEngineArgs."""
    if dtype not in DTYPES:
        raise EnvironmentProblem(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if kv_cache_dtype not in CACHE_DTYPES:
        raise EnvironmentProblem(f"kv_cache_dtype is {kv_cache_dtype!r}, expected one of {', '.join(CACHE_DTYPES)}")
    itemsize = DTYPES[dtype] if kv_cache_dtype == "auto" else 1
    if context not in CONTEXTS:
        raise EnvironmentProblem(f"context is {context!r}, expected one of {', '.join(CONTEXTS)}")
    if load_format != "dummy":
        folder.check_weights()
    config = folder.config
    streams = 2 if guidance and config.unconditional else 1
    lanes = DEFAULT_LANES if max_lanes is None else max_lanes
    if lanes < 1:
        raise EnvironmentProblem(f"max_lanes is {lanes}, but at least one crop must be drawn at a time")
    max_model_len = config.max_prefix + config.grid.codes + 1
    scheduler = "AsyncRedirectScheduler" if async_scheduling else "RedirectScheduler"
    return {
        "model": str(folder.path),
        "dtype": dtype,
        "load_format": load_format,
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": max_model_len,
        "max_num_seqs": lanes,
        # Room for every lane to begin in the same step with its longest first chunk.
        "max_num_batched_tokens": max(max_model_len, lanes * (config.max_prefix + config.grid.side)),
        "kv_cache_memory_bytes": cache_bytes(config, itemsize, streams, lanes, kv_cache_gib),
        "kv_cache_dtype": kv_cache_dtype,
        "block_size": BLOCK_SIZE,
        "enable_prefix_caching": False,
        "async_scheduling": async_scheduling,
        "scheduler_cls": f"panoserve.redirect.scheduler.{scheduler}",
        "logits_processors": ["panoserve.models.guidance:GuidanceProcessor"],
        "kv_transfer_config": {
            "kv_connector": "ShiftConnector",
            "kv_connector_module_path": "panoserve.redirect.connector",
            "kv_role": "kv_both",
        },
        "hf_overrides": {"streams": streams},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
