"""Per-request guidance scales, bridges to given codes, and the top-k and top-p masks, for the rows of a vLLM batch.

vLLM calls `update_state` of a logits processor before every forward pass, after it has arranged the batch, so a
processor knows which request each row of logits belongs to (design.md 3). Ours keeps the table of scales that the
model's compute_logits mixes the two streams with; it leads draws to a code that is given behind them (bridge.py); and
where kernels/truncation.py is faster than vLLM's own masks, it applies the top-k and the top-p that the lane was given
in place of vLLM's. Greedy draws (temperature 0) take the guided model's most probable code and see nothing of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from panoserve.configs.wire import GUIDANCE_KEY, Bridge
from panoserve.kernels.truncation import mask_below_top_k, mask_below_top_p
from panoserve.models.bridge import Codebook, Pull

UNGUIDED = 1.0


@dataclass(slots=True)
class RowGuidance:
    """What the table needs to know of one row; `drawn` is vLLM's live list of the codes drawn by this request."""

    scale: float
    interval: int
    first_code: int
    top_k: int  # 0 keeps every code, or leaves it to vLLM
    top_p: float  # 1 likewise
    drawn: list[int]
    pull: Pull | None  # to a code that is given behind what is drawn

    @property
    def current(self) -> float:
        if self.interval >= 0 and self.first_code + len(self.drawn) > self.interval + 1:
            return UNGUIDED
        return self.scale


class GuidanceTable:
    """Scale of every batch row; rows without a request are unguided."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.scales = torch.full((rows, 1), UNGUIDED, dtype=torch.float32, device=device)
        self.any_guided = False

    def fill(self, rows: dict[int, RowGuidance]) -> None:
        values = [UNGUIDED] * len(self.scales)
        for index, row in rows.items():
            values[index] = row.current
        self.any_guided = any(value != UNGUIDED for value in values)
        self.scales.copy_(torch.tensor(values).unsqueeze(1))

    def mix(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """uncond + s (cond - uncond) per row of float32 logits [rows, V]; exactly cond where s is 1."""
        if not self.any_guided:
            return conditional
        scales = self.scales[: len(conditional)]
        mixed = torch.addcmul(unconditional, scales, conditional - unconditional)
        return torch.where(scales == UNGUIDED, conditional, mixed)


_tables: dict[int, GuidanceTable] = {}


def guidance_table(vllm_config: VllmConfig, device: torch.device) -> GuidanceTable:
    """The table shared by the model and the logits processor of one engine in this process.

    vLLM builds both from the same VllmConfig object and offers no other thread between them.
    """
    return _tables.setdefault(id(vllm_config), GuidanceTable(vllm_config.scheduler_config.max_num_seqs, device))


class GuidanceProcessor(LogitsProcessor):
    """Keeps the engine's GuidanceTable in step with vLLM's batch, and masks what lanes with a top-k may not draw."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        _tables.pop(id(vllm_config), None)  # a new engine may reuse the id of a dead one's config
        self.table = guidance_table(vllm_config, device)
        self.codebook = Codebook.of(Path(vllm_config.model_config.model), device)
        self.rows: dict[int, RowGuidance] = {}
        self.top_k: torch.Tensor | None = None  # int64 [rows up to the last of ours]
        self.top_p: torch.Tensor | None = None  # float64, likewise

    def _new_row(self, params: SamplingParams, _prompt: list[int] | None, drawn: list[int]) -> RowGuidance | None:
        extra_args = params.extra_args or {}
        values = extra_args.get(GUIDANCE_KEY)
        if values is None:
            return None
        scale, interval, first_code, top_k, top_p = values
        bridge = Bridge.from_extra_args(extra_args)
        pull = self.codebook.pull(bridge) if self.codebook and bridge and params.temperature > 0 else None
        return RowGuidance(scale, interval, first_code, top_k, top_p, drawn, pull)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        changed = process_dict_updates(self.rows, batch_update, self._new_row)
        if changed or any(row.interval >= 0 for row in self.rows.values()):
            self.table.fill(self.rows)
        if changed:
            count = max(self.rows, default=-1) + 1
            top_k, top_p = [0] * count, [1.0] * count
            for index, row in self.rows.items():
                top_k[index], top_p[index] = row.top_k, row.top_p
            self.top_k = torch.tensor(top_k) if any(top_k) else None
            self.top_p = torch.tensor(top_p, dtype=torch.float64) if any(p < 1 for p in top_p) else None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] divided by the temperature, led to what is given and masked, in place."""
        for index, row in self.rows.items():
            if row.pull is not None:
                row.pull.apply(logits[index], len(row.drawn))
        if self.top_k is not None:
            masked = logits[: len(self.top_k)]
            mask_below_top_k(masked, self.top_k[: len(masked)])
        if self.top_p is not None:
            masked = logits[: len(self.top_p)]
            mask_below_top_p(masked, self.top_p[: len(masked)])
        return logits

    def is_argmax_invariant(self) -> bool:
        return True  # so that vLLM calls `apply` for sampled draws only, and behind the temperature
