"""The KV connector that moves keys and values between lanes inside one cache (context `reuse`).

vLLM's connector interface is meant for KV that comes from elsewhere; here it comes from other blocks of the same cache.
The scheduler side turns the copies of a turn into slots once vLLM has allocated the child's blocks; the worker side
carries them out before the step's forward pass (design.md 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from panoserve.errors import EnvironmentProblem
from panoserve.kernels.huge_pages import use_huge_pages
from panoserve.kernels.kv_layout import KVLayout, attention_isa, kv_layout, movable, numbers
from panoserve.kernels.kv_shift import KVMove, move_kv
from panoserve.kernels.rope import RopeSpec

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig


@dataclass(frozen=True, slots=True)
class SequenceCopy:
    """`length` sequence positions of lane `parent` from `source` on go to the child's from `destination` on."""

    parent: str
    source: int
    destination: int
    length: int
    rows: int
    columns: int


@dataclass
class ShiftMetadata(KVConnectorMetadata):
    """All moves of one step: int64 [n, 4] of (source slot, destination slot, rows, columns)."""

    moves: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.int64))


class ShiftConnector(KVConnectorBase_V1):
    """Copies within the cache. `kv_connector_module_path` is this module."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_size = vllm_config.cache_config.block_size
        self._cache_dtype = str(vllm_config.cache_config.cache_dtype)
        self._dtype = vllm_config.model_config.dtype
        self._config = vllm_config.model_config.hf_config
        self._pending: dict[str, list[SequenceCopy]] = {}
        self._block_ids: Callable[[str], tuple[list[int], ...]] | None = None
        self._layers: list[torch.Tensor] = []

    # ---- scheduler side ----

    def bind_blocks(self, block_ids: Callable[[str], tuple[list[int], ...]]) -> None:
        """`block_ids(request_id)` gives the blocks a lane holds; set by the scheduler once its cache manager exists."""
        self._block_ids = block_ids

    def request_copies(self, child: str, copies: Sequence[SequenceCopy]) -> None:
        """Make `copies` in the step that next schedules lane `child`."""
        self._pending[child] = list(copies)

    def forget(self, child: str) -> None:
        self._pending.pop(child, None)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> ShiftMetadata:
        children = [child for child in self._pending if child in scheduler_output.num_scheduled_tokens]
        if not children:
            return ShiftMetadata()
        moves = [self._slots(child, copy) for child in children for copy in self._pending.pop(child)]
        # Without this flag vLLM would start the copies only after the forward pass that reads them.
        scheduler_output.has_sync_kv_loads = True
        return ShiftMetadata(np.concatenate(moves))

    def _slots(self, child: str, copy: SequenceCopy) -> np.ndarray:
        moves = np.empty((copy.length, 4), dtype=np.int64)
        moves[:, 0] = self._slots_of(copy.parent, copy.source, copy.length)
        moves[:, 1] = self._slots_of(child, copy.destination, copy.length)
        moves[:, 2:] = copy.rows, copy.columns
        return moves

    def _slots_of(self, lane: str, start: int, length: int) -> np.ndarray:
        assert self._block_ids is not None, "bind_blocks was not called"
        blocks = np.asarray(self._block_ids(lane)[0], dtype=np.int64)
        positions = np.arange(start, start + length)
        return blocks[positions // self._block_size] * self._block_size + positions % self._block_size

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    # ---- worker side ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self._layers:
            raise EnvironmentProblem("two vLLM engines share one process; their KV caches would be mixed up")
        self._layers = list(kv_caches.values())
        if movable(self._cache_dtype, self._layers[0].device.type):  # else serve/engine.py refuses `reuse`
            _ = self._layout  # may not be known: better now than in a step
        if self._layers[0].device.type == "cpu":
            use_huge_pages()  # weights are loaded and the cache is there: all that a step reads

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, ShiftMetadata)
        if not len(metadata.moves):
            return
        moves = torch.from_numpy(metadata.moves).to(self._layers[0].device)
        source, destination, rows, columns = moves.T.contiguous().unbind()
        layers = [numbers(layer) for layer in self._layers]
        move_kv(layers, self._layout, KVMove(source, destination, rows.int(), columns.int()), self._rope)

    @cached_property
    def _layout(self) -> KVLayout:
        layer, isa = self._layers[0], None
        if layer.device.type == "cpu":
            isa = attention_isa(self._dtype, layer.shape[2], layer.shape[3] // 2, self._cache_dtype)
        return kv_layout(layer, isa)

    @cached_property
    def _rope(self) -> RopeSpec:
        shape = self._config.shape
        return RopeSpec(head_dim=shape.head_dim, theta=shape.rope_theta)

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass
