"""One submitted panorama while its rows come back from vLLM."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from panoserve.configs.wire import STATS_KEY
from panoserve.errors import PanoramaFailedError
from panoserve.serve.request import PanoramaStats

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

    from panoserve.configs.grid import Canvas
    from panoserve.serve.prepare import Submission


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One complete row of the canvas: its index from the top, and its codes, int64 [W]."""

    index: int
    codes: torch.Tensor


class Drawing:
    """Collects the rows of one panorama, which arrive whole and in order."""

    def __init__(self, submission: Submission, canvas: Canvas) -> None:
        self.submission = submission
        self.canvas = canvas
        self.rows: list[Row] = []
        self.stats: PanoramaStats | None = None  # once the last row is in
        self._begun = time.perf_counter()

    def take(self, output: RequestOutput) -> list[Row]:
        """The rows that `output` completes. Raises PanoramaFailedError if the engine gave the panorama up."""
        completion = output.outputs[0]
        if completion.finish_reason in ("abort", "error"):
            raise PanoramaFailedError(
                f"the engine stopped drawing after {len(self.rows)} of {self.canvas.rows} rows "
                f"({completion.finish_reason}); its log says why (-v)"
            )
        rows = torch.tensor(list(completion.token_ids), dtype=torch.long).view(-1, self.canvas.columns)
        new = [Row(index, codes) for index, codes in enumerate(rows, start=len(self.rows))]
        self.rows += new
        if output.finished:
            counters = (output.kv_transfer_params or {})[STATS_KEY]
            self.stats = PanoramaStats(**counters, seconds=time.perf_counter() - self._begun)
        return new

    @property
    def codes(self) -> torch.Tensor:
        """The canvas, int64 [H, W]."""
        return torch.stack([row.codes for row in self.rows])
