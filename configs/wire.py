"""What a client tells the engine about a request, inside vLLM's `SamplingParams.extra_args`.

PANORAMA_KEY is on the one request a client submits, GUIDANCE_KEY and perhaps BRIDGE_KEY on the lanes that the scheduler
makes of it. Plain values only, since they cross process borders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PANORAMA_KEY = "panoserve_panorama"
GUIDANCE_KEY = "panoserve_guidance"
BRIDGE_KEY = "panoserve_bridge"
STATS_KEY = "panoserve_stats"  # in RequestOutput.kv_transfer_params of a finished panorama


UNKNOWN = -1  # in place of a code that is not known yet


@dataclass(frozen=True, slots=True)
class PanoramaArgs:
    """The panorama that one client request asks for; sizes and strides in codes."""

    rows: int
    columns: int
    stride: int
    context: str
    seed: int
    guidance: float
    guidance_interval: int
    row_stride: int | None = None  # None: as `stride`
    loop: bool = False
    prompts: tuple[int, ...] | None = (
        None  # of every crop, in plan order: which of the request's conditions; None: the only
    )
    given: list[list[int]] | None = None  # the canvas with what is known beforehand, and UNKNOWN elsewhere
    origin: tuple[int, int] = (0, 0)  # (row, column) of the canvas on a larger one, for the lanes' seeds

    def to_extra_args(self) -> dict[str, Any]:
        return {PANORAMA_KEY: asdict(self)}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> PanoramaArgs | None:
        """The panorama of a request, or None if the request is not one."""
        values = (extra_args or {}).get(PANORAMA_KEY)
        return None if values is None else cls(**values)


def guidance_args(scale: float, interval: int, first_code: int, top_k: int, top_p: float) -> dict[str, Any]:
    """extra_args of one vLLM request whose first draw is grid code `first_code`.

    `interval` as in facts.md 1.8: negative guides every code, otherwise codes 0 .. interval + 1 of a crop. `top_k`,
    `top_p`: what models/guidance.py masks, 0 and 1 if nothing or if vLLM does it.
    """
    return {GUIDANCE_KEY: [scale, interval, first_code, top_k, top_p]}


@dataclass(frozen=True, slots=True)
class Bridge:
    """The given code that a turn's draws meet in their row, and what codes around it look like (models/bridge.py)."""

    target: int  # the given code right of the last draw
    length: int  # how many of the last draws are in its row
    draws: int  # of the turn
    neighbours: list[int]  # left, right, left, right ...: neighbouring codes of this row and the ones above; not empty

    def to_extra_args(self) -> dict[str, Any]:
        return {BRIDGE_KEY: asdict(self)}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any]) -> Bridge | None:
        """That of a lane's turn, or None if it has none."""
        values = extra_args.get(BRIDGE_KEY)
        return None if values is None else cls(**values)
