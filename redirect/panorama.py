"""One client request as the scheduler sees it: a plan, its progress, and the vLLM requests of its lanes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.platforms import current_platform
from vllm.v1.request import Request

from panoserve.configs.grid import Grid
from panoserve.configs.wire import PanoramaArgs, guidance_args
from panoserve.kernels import truncation
from panoserve.redirect.connector import SequenceCopy
from panoserve.redirect.layout import plan_of
from panoserve.redirect.plan import lane_seed
from panoserve.redirect.progress import LaneProgress, Progress

LANE_MARK = "\x1flane"  # cannot occur in a client's request id


def lane_id(panorama_id: str, lane: int) -> str:
    return f"{panorama_id}{LANE_MARK}{lane}"


class PanoramaState:
    """A panorama under way.

    A sequence position of a lane is a condition row (0 .. prefix - 1) or a grid index behind it (prefix + k).
    """

    def __init__(self, request: Request, args: PanoramaArgs, grid: Grid) -> None:
        self.request = request
        self.args = args
        # What every turn's are copied from: without the canvas, which would be copied each time as well.
        assert request.sampling_params is not None
        self._params = request.sampling_params.clone()
        self._params.extra_args = None
        self.plan = plan_of(args, grid)
        # Kept, because the first one that waits is asked for them in every step:
        self.min_resident, self.mean_resident = self.plan.min_resident, self.plan.mean_resident
        self.progress = Progress(self.plan, args.given)
        self.features = list(request.mm_features)  # one caption per condition; none with classes
        ids = list(request.prompt_token_ids or [])
        captions = [[ids[0]] * feature.mm_position.length for feature in self.features]
        self.prefixes: list[list[int]] = captions or [[label] for label in ids]  # of every condition
        self.admitted: set[int] = set()  # lanes that hold KV
        self._in_turn = 0  # lanes below this were admitted, some perhaps released since
        self._early: set[int] = set()  # lanes above it that were admitted, likewise
        self.steps = 0
        self.forward_tokens = 0
        self.copied_slots = 0
        self.first_output: Any = None  # the first lane's first output, whose events and timings the client gets

    @property
    def id(self) -> str:
        return self.request.request_id

    def priority_of(self) -> int:
        """vLLM's: less is sooner."""
        return self.request.priority

    def lane_blocks(self, block_size: int) -> int:
        """KV blocks of one lane's whole window, under the longest condition."""
        return -(-(max(map(len, self.prefixes)) + self.plan.grid.codes) // block_size)

    def ahead_with(self, index: int | None = None) -> int:
        """How many lanes are held ahead of their turn (admission.py), if lane `index` is admitted now."""
        in_turn = self._in_turn
        early = self._early if index is None else self._early | {index}
        while in_turn in early:
            in_turn += 1
        return sum(lane > in_turn for lane in early if lane == index or lane in self.admitted)

    def admit(self, index: int) -> None:
        """Lane `index` holds KV from now on."""
        self.admitted.add(index)
        self._early.add(index)
        while self._in_turn in self._early:
            self._early.remove(self._in_turn)
            self._in_turn += 1

    def lane_ids(self) -> list[str]:
        """Ids of the lanes that hold KV."""
        return [lane_id(self.id, index) for index in sorted(self.admitted)]

    def turn_request(self, lane: LaneProgress) -> Request:
        """The vLLM request (the first turn) or session update (later ones) that starts a lane's next turn."""
        turn, first = lane.current, lane.turn == 0
        given = self.progress.given(lane)
        if turn.carry:
            assert turn.feed is not None
            given.insert(0, self.progress.code(lane.lane, turn.feed.start - 1))
        drawn_from = turn.draw.start if turn.draw else self.plan.grid.codes
        params = self._params.clone()
        params.max_tokens = turn.samples
        params.seed = None if params.temperature == 0 else lane_seed(self.args.seed, lane.lane, self.args.origin)
        top_k, top_p = 0, 1.0
        if truncation.available(torch.device(current_platform.device_type)):
            top_k, top_p, params.top_k, params.top_p = max(params.top_k, 0), params.top_p, 0, 1.0
        guidance = (self.args.guidance, self.args.guidance_interval, drawn_from)
        params.extra_args = guidance_args(*guidance, top_k, top_p)
        bridge = self.progress.bridge(lane)
        if bridge is not None:
            params.extra_args |= bridge.to_extra_args()
        prompt = lane.lane.prompt
        return Request(
            request_id=lane_id(self.id, lane.lane.index),
            prompt_token_ids=self.prefixes[prompt] + given if first else given,
            sampling_params=params,
            pooling_params=None,
            client_index=self.request.client_index,
            arrival_time=self.request.arrival_time,
            mm_features=self._caption(prompt) if first else None,
            priority=self.request.priority,
            resumable=True,
        )

    def _caption(self, prompt: int) -> list[MultiModalFeatureSpec]:
        """The features of one condition, at the start of a lane's sequence; empty with classes."""
        if not self.features:
            return []
        feature = self.features[prompt]
        return [replace(feature, mm_position=replace(feature.mm_position, offset=0))]

    def turn_copies(self, lane: LaneProgress) -> list[SequenceCopy]:
        """The KV moves of a lane's next turn."""
        prefix = len(self.prefixes[lane.lane.prompt])
        copies = []
        if lane.turn == 0 and lane.lane.prefix_parent is not None:
            copies.append(SequenceCopy(lane_id(self.id, lane.lane.prefix_parent), 0, 0, prefix, 0, 0))
        for copy in lane.current.copies:
            rows, columns = self.plan.shift(lane.lane, copy)
            parent = lane_id(self.id, copy.parent)
            copies.append(SequenceCopy(parent, prefix + copy.source, prefix + copy.start, copy.length, rows, columns))
        return copies

    def stats(self) -> dict[str, int]:
        """The engine's own counters, for the client."""
        return {
            "steps": self.steps,
            "drawn": self.progress.drawn,
            "forward_tokens": self.forward_tokens,
            "copied_slots": self.copied_slots,
            "lanes": len(self.plan.lanes),
        }
