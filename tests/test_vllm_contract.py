"""The parts of vLLM that we rely on and that nobody promised us: if one of these fails, a vLLM update moved something.

Every private name used by redirect/, models/ and serve/ is listed here with what we assume about it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panoserve.serve.settings import set_environment

set_environment()
vllm = pytest.importorskip("vllm")


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_version_is_the_pinned_one() -> None:
    assert vllm.__version__.split("+")[0].rsplit(".", 1)[0] == "0.32"


def test_scheduler_methods_we_override() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    for scheduler in (Scheduler, AsyncScheduler):
        assert parameters(scheduler.add_request) == ["request"]
        assert parameters(scheduler.schedule) == ["throttle_prefills"]
        assert parameters(scheduler.update_from_output) == ["scheduler_output", "model_runner_output"]
        assert parameters(scheduler.finish_requests) == ["request_ids", "finished_status"]
        assert parameters(scheduler._preempt_request)[0] == "request"


def test_sessions_behave_as_lanes_need() -> None:
    """A session keeps its computed tokens, drops the last sample, appends the update's tokens, and takes its params."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request, RequestStatus, StreamingUpdate

    first = {"request_id", "prompt_token_ids", "sampling_params", "pooling_params", "client_index", "arrival_time"}
    assert first | {"mm_features", "priority", "resumable"} <= set(parameters(Request.__init__))

    def request(tokens: list[int], draws: int) -> Request:
        params = SamplingParams(max_tokens=draws)
        return Request("lane", tokens, params, None, resumable=True)

    session = request([1, 2], draws=3)
    session.append_output_token_ids([10, 11, 12])
    session.num_computed_tokens = 4  # the last sample was never fed
    session.status = RequestStatus.RUNNING
    update = StreamingUpdate.from_request(request([12, 20, 21], draws=5))
    scheduler = type("S", (), {"hash_block_size": 32, "num_waiting_for_streaming_input": 0, "log_stats": False})()
    Scheduler._update_request_as_session(scheduler, session, update)
    assert session.prompt_token_ids == [1, 2, 10, 11, 12, 20, 21]
    assert (session.num_computed_tokens, session.max_tokens, session.num_output_tokens) == (4, 5, 0)
    assert session.status == RequestStatus.WAITING


def test_engine_core_output_fields() -> None:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    output = EngineCoreOutput(request_id="a", new_token_ids=[1], finish_reason=FinishReason.LENGTH)
    assert hasattr(output, "kv_transfer_params") and hasattr(output, "prefill_stats") and hasattr(output, "events")
    assert EngineCoreOutputs().outputs == [] and hasattr(EngineCoreOutputs(), "finished_requests")


def test_connector_interface() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
    from vllm.v1.core.sched.output import SchedulerOutput

    from panoserve.redirect.connector import ShiftConnector

    assert parameters(KVConnectorBase_V1.__init__) == ["vllm_config", "role", "kv_cache_config"]
    for name in KVConnectorBase_V1.__abstractmethods__:
        assert parameters(getattr(ShiftConnector, name)) == parameters(getattr(KVConnectorBase_V1, name)), name
    assert "has_sync_kv_loads" in SchedulerOutput.__dataclass_fields__


def test_logits_processor_interface() -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    assert parameters(LogitsProcessor.update_state) == ["batch_update"]
    assert parameters(LogitsProcessor.__init__) == ["vllm_config", "device", "is_pin_memory"]
    assert parameters(process_dict_updates) == ["req_entries", "batch_update", "new_state"]
    assert set(BatchUpdate.__dataclass_fields__) == {"batch_size", "removed", "added", "moved"}


def test_model_interfaces() -> None:
    from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal

    from panoserve.models.llamagen import LlamaGenForImageGeneration, LlamaGenForTextToImage

    ours = parameters(LlamaGenForImageGeneration.get_mrope_input_positions)
    assert ours == parameters(SupportsMRoPE.get_mrope_input_positions)
    assert parameters(LlamaGenForTextToImage.embed_multimodal) == parameters(SupportsMultiModal.embed_multimodal)


def test_embedded_inputs_are_as_wide_as_projection_dim_says() -> None:
    from vllm.config import ModelConfig
    from vllm.model_executor.models.interfaces import SupportsMultiModal

    from panoserve.models.llamagen import LlamaGenForTextToImage

    text_config = type("T", (), {"projection_dim": 96, "hidden_size": 48})()
    assert (
        ModelConfig.get_inputs_embeds_size(type("M", (), {"hf_text_config": text_config, "get_hidden_size": 48})())
        == 96
    )
    theirs, ours = (parameters(c.embed_input_ids) for c in (SupportsMultiModal, LlamaGenForTextToImage))
    assert set(theirs) == set(ours)


def config_of(folder: Path) -> Any:
    """What a logits processor reads of a VllmConfig, for four rows."""
    scheduler, model = type("S", (), {"max_num_seqs": 4})(), type("M", (), {"model": str(folder)})()
    return type("C", (), {"scheduler_config": scheduler, "model_config": model})()


def test_guidance_rows_follow_the_batch(tmp_path: Path) -> None:
    """Rows are added, moved and removed as vLLM says; an interval ends where it should."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from panoserve.configs.wire import guidance_args
    from panoserve.models.guidance import GuidanceProcessor

    config = config_of(tmp_path)
    processor = GuidanceProcessor(config, torch.device("cpu"), False)
    drawn: list[int] = []

    def params(scale: float, interval: int, first: int) -> SamplingParams:
        return SamplingParams(extra_args=guidance_args(scale, interval, first, top_k=0, top_p=1.0))

    added = [(0, params(3.0, -1, 0), None, []), (1, params(2.0, 4, 5), None, drawn)]
    processor.update_state(BatchUpdate(batch_size=2, removed=[], added=added, moved=[]))
    assert processor.table.scales[:, 0].tolist() == [3.0, 2.0, 1.0, 1.0], "code 5 is the last one guided"
    drawn.append(7)
    processor.update_state(None)
    assert processor.table.scales[:, 0].tolist() == [3.0, 1.0, 1.0, 1.0]
    moved = [(0, 2, MoveDirectionality.UNIDIRECTIONAL)]
    processor.update_state(BatchUpdate(batch_size=2, removed=[], added=[], moved=moved))
    assert processor.table.scales[:, 0].tolist() == [1.0, 1.0, 3.0, 1.0]
    cond, uncond = torch.randn(3, 5), torch.randn(3, 5)
    mixed = processor.table.mix(cond, uncond)
    assert torch.equal(mixed[:2], cond[:2])
    torch.testing.assert_close(mixed[2], uncond[2] + 3.0 * (cond[2] - uncond[2]))
    processor.update_state(BatchUpdate(batch_size=1, removed=[2], added=[], moved=[]))
    assert processor.table.scales[:, 0].tolist() == [1.0] * 4


def test_our_top_k_draws_what_vllms_does(tmp_path: Path) -> None:
    """The sampler applies an argmax-invariant processor after the temperature, where its own top-k would come."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

    from panoserve.configs.wire import guidance_args
    from panoserve.kernels import truncation
    from panoserve.models.guidance import GuidanceProcessor

    if not truncation.available(torch.device("cpu")):
        pytest.skip("needs a C compiler at installation")
    config = config_of(tmp_path)
    processor = GuidanceProcessor(config, torch.device("cpu"), False)
    kept = [(0, 1.0), (5, 1.0), (40, 0.8), (0, 0.6)]
    params = [SamplingParams(extra_args=guidance_args(1.0, -1, 0, k, p)) for k, p in kept]
    added = [(row, of, None, []) for row, of in enumerate(params)]
    processor.update_state(BatchUpdate(batch_size=4, removed=[], added=added, moved=[]))
    logits = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))

    def draw(by_us: bool) -> list[list[int]]:
        drawn = []
        for seed in range(20):
            metadata = SamplingMetadata(
                temperature=torch.full((4,), 0.7),
                all_greedy=False,
                all_random=True,
                top_p=None if by_us else torch.tensor([p for _, p in kept]),
                top_k=None if by_us else torch.tensor([k or 200 for k, _ in kept], dtype=torch.int32),
                generators={row: torch.Generator().manual_seed(4 * seed + row) for row in range(4)},
                max_num_logprobs=None,
                no_penalties=True,
                prompt_token_ids=None,
                frequency_penalties=torch.zeros(4),
                presence_penalties=torch.zeros(4),
                repetition_penalties=torch.ones(4),
                output_token_ids=[[], [], [], []],
                allowed_token_ids_mask=None,
                bad_words_token_ids={},
                logitsprocs=LogitsProcessors([processor] if by_us else []),
            )
            drawn.append(Sampler()(logits.clone(), metadata).sampled_token_ids[:, 0].tolist())
        return drawn

    assert draw(by_us=True) == draw(by_us=False)
    best = logits.topk(5, dim=1).indices[1].tolist()
    assert all(row[1] in best for row in draw(by_us=True))


def test_cpu_attention_can_be_refined() -> None:
    """models/attention.py overrides one method of the implementation and reads these fields of the metadata."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.attention.backends.cpu_attn import (
        CPUAttentionBackend,
        CPUAttentionBackendImpl,
        CPUAttentionMetadata,
        CPUAttentionMetadataBuilder,
    )

    assert "attn_backend" in parameters(Attention.__init__)
    assert not CPUAttentionBackend.forward_includes_kv_cache_update  # the new keys are in the cache before forward
    assert parameters(CPUAttentionBackendImpl.forward) == [
        "layer", "query", "key", "value", "kv_cache", "attn_metadata", "output", "output_scale", "output_block_scale",
    ]  # fmt: skip
    assert parameters(CPUAttentionBackendImpl.do_kv_cache_update) == [
        "layer", "key", "value", "kv_cache", "slot_mapping",
    ]  # fmt: skip
    fields = {field.name for field in dataclasses.fields(CPUAttentionMetadata)}
    assert {"num_actual_tokens", "max_query_len", "query_start_loc", "seq_lens", "block_table"} <= fields
    assert hasattr(CPUAttentionMetadataBuilder, "_set_isa_to_layers")  # which sets layer.isa


def test_both_architectures_register() -> None:
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from panoserve.configs.model import CAPTION_ARCHITECTURE, CLASS_ARCHITECTURE
    from panoserve.plugin import register

    register()
    register()
    assert {CLASS_ARCHITECTURE, CAPTION_ARCHITECTURE} <= set(ModelRegistry.get_supported_archs())
    assert AutoConfig.for_model("llamagen") is not None


def test_registering_asks_for_amx() -> None:
    """Without the permission, vLLM's bfloat16 attention on a processor with AMX ends in an illegal instruction."""
    import torch

    from panoserve.plugin import register

    register()
    assert torch.cpu._init_amx() == torch.cpu._is_amx_tile_supported()


def test_the_api_server_takes_our_routes_and_arguments() -> None:
    """serve/http: the plug-in's two hooks, the parser we set defaults on, the coroutine we run."""
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin, attach_endpoint_plugins

    from panoserve.serve.http.plugin import ImagesPlugin

    assert isinstance(ImagesPlugin(), EndpointPlugin)
    for hook in ("attach_router", "init_state"):
        assert parameters(getattr(ImagesPlugin, hook)) == parameters(getattr(EndpointPlugin, hook))
    assert parameters(attach_endpoint_plugins) == ["app", "supported_tasks"]
    assert parameters(run_server)[0] == "args"
    assert parameters(make_arg_parser) == ["parser"]
    assert parameters(validate_parsed_serve_args) == ["args"]


def test_a_dead_engine_can_be_told_from_a_stopped_one() -> None:
    """serve/http/launch.py: failed_proc_name is set only for a process that ended without being told to."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import BackgroundResources
    from vllm.v1.engine.utils import CoreEngineProcManager

    assert isinstance(AsyncLLM.errored, property)
    assert "engine_manager" in {field.name for field in dataclasses.fields(BackgroundResources)}
    source = inspect.getsource(CoreEngineProcManager.monitor_engine_liveness)
    assert "not self.manager_stopped.is_set()" in source and "self.failed_proc_name = proc.name" in source


def test_threads_are_left_alone_when_nobody_binds_them() -> None:
    """serve/http/launch.py sets VLLM_CPU_OMP_THREADS_BIND=nobind, or two cores would be kept from the engine."""
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    source = inspect.getsource(OMPProcessManager)
    assert 'self.skip_setup = vllm_mask == "nobind"' in source
    assert "if config.kv_transfer_config:\n            self.reserve_cpu_num += self.local_world_size" in source


def test_every_sampling_value_that_we_allow_is_one_that_vllm_takes() -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from panoserve.serve.request import MAX_SEED, MAX_TEMPERATURE

    SamplingParams(temperature=MAX_TEMPERATURE, top_p=1e-9, top_k=0, seed=MAX_SEED)
    with pytest.raises(VLLMValidationError, match="temperature"):
        SamplingParams(temperature=MAX_TEMPERATURE + 0.1)
