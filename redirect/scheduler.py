"""The redirection scheduler: one client request becomes many lanes, advanced as a wavefront in vLLM's own batch.

A lane is a child request with `resumable=True` (vLLM's streaming session): when a turn's draws are complete the session
waits, and the next turn is fed to it through `add_request`. All policy is elsewhere and pure: what to draw is a plan
(plan.py), what can start is progress.py, who may hold KV is admission.py. This file only translates (design.md 4).
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from panoserve.configs.wire import STATS_KEY, PanoramaArgs
from panoserve.errors import CacheTooSmallError, EnvironmentProblem
from panoserve.redirect.admission import Admission
from panoserve.redirect.connector import ShiftConnector
from panoserve.redirect.panorama import LANE_MARK, PanoramaState, lane_id
from panoserve.redirect.progress import LaneProgress

Outputs = dict[int, EngineCoreOutputs]
logger = logging.getLogger(__name__)


class RedirectMixin(Scheduler):
    """What both schedulers below add to vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.cache_config.enable_prefix_caching:
            raise EnvironmentProblem(
                "prefix caching is on, but lanes write keys and values that differ from what their codes would compute;"
                " start the engine with enable_prefix_caching=False (--no-enable-prefix-caching)"
            )
        self._shape = self.vllm_config.model_config.hf_config.shape
        blocks = (self.cache_config.num_gpu_blocks or 0) - 1  # vLLM keeps one block for itself
        self._admission = Admission(blocks, self.max_num_running_reqs)
        slots = self._shape.max_prefix + self._shape.grid.codes
        if not self._admission.can_ever_hold(-(-slots // self.block_size), 1):
            raise CacheTooSmallError(
                f"the KV cache has {blocks} blocks of {self.block_size} slots, but one lane needs {slots} slots; "
                "give the engine a larger cache (kv_cache_gib)"
            )
        self._panoramas: dict[str, PanoramaState] = {}  # under way, oldest first
        self._queue: list[PanoramaState] = []  # not begun, as their KV does not fit yet; by priority, then by age
        self._preempted: set[str] = set()  # lanes that lost their KV in this step
        if isinstance(self.connector, ShiftConnector):
            self.connector.bind_blocks(self.kv_cache_manager.get_block_ids)

    # ---- what vLLM calls ----

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        args = PanoramaArgs.from_extra_args(params.extra_args if params else None)
        if args is None:
            super().add_request(request)
            return
        insort(self._queue, PanoramaState(request, args, self._shape.grid), key=PanoramaState.priority_of)
        self._advance()

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        output = super().schedule(*args, **kwargs)
        for panorama in self._panoramas.values():
            tokens = [output.num_scheduled_tokens.get(lane, 0) for lane in panorama.lane_ids()]
            panorama.steps += any(tokens)
            panorama.forward_tokens += sum(tokens)
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Outputs:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        drew: set[str] = set()
        for engine_outputs in outputs.values():
            kept = []
            for output in engine_outputs.outputs:
                if LANE_MARK in output.request_id:
                    drew.add(self._record(output))
                else:
                    kept.append(output)
            engine_outputs.outputs = kept
            if engine_outputs.finished_requests:
                engine_outputs.finished_requests = {
                    request for request in engine_outputs.finished_requests if LANE_MARK not in request
                }
        for panorama_id in drew & self._panoramas.keys():
            self._deliver(self._panoramas[panorama_id], outputs)
        self._give_up_preempted(outputs)
        self._advance()
        return outputs

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Admission keeps vLLM from needing this, but it may be told to (reset_prefix_cache)."""
        super()._preempt_request(request, *args, **kwargs)
        if LANE_MARK in request.request_id:
            self._preempted.add(request.request_id)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """vLLM's contract, with panoramas: one of them ends with all its lanes, by its own id or by any lane's."""
        if request_ids is None:
            ids = [*self._panoramas, *(p.id for p in self._queue), *(i for i in self.requests if LANE_MARK not in i)]
        else:
            ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        finished, plain = [], []
        for request_id in dict.fromkeys(i.split(LANE_MARK)[0] for i in ids):
            panorama = self._panoramas.get(request_id) or next((p for p in self._queue if p.id == request_id), None)
            if panorama is None:
                plain.append(request_id)
                continue
            panorama.request.status = finished_status
            self._end(panorama)
            finished.append(panorama.request)
        finished += super().finish_requests(plain, finished_status)
        self._advance()
        return finished

    # ---- panoramas ----

    def _record(self, output: EngineCoreOutput) -> str:
        """Take over what a lane drew; returns its panorama's id."""
        panorama_id, lane_index = output.request_id.split(LANE_MARK)
        panorama = self._panoramas.get(panorama_id)
        if panorama is not None:
            panorama.first_output = panorama.first_output or output
            lane = panorama.progress.lanes[int(lane_index)]
            for code in output.new_token_ids:
                panorama.progress.sampled(lane, code)
        return panorama_id

    def _deliver(self, panorama: PanoramaState, outputs: Outputs) -> None:
        """Send the client its panorama's newly complete rows, and the end with the last of them."""
        codes = [code for _, row in panorama.progress.complete_rows() for code in row]
        if not codes:
            return
        done = panorama.progress.done
        first, panorama.first_output = panorama.first_output, None
        client = panorama.request.client_index
        outputs.setdefault(client, EngineCoreOutputs()).outputs.append(
            EngineCoreOutput(
                request_id=panorama.id,
                new_token_ids=codes,
                finish_reason=FinishReason.LENGTH if done else None,
                events=first.events if first else None,
                prefill_stats=first.prefill_stats if first else None,
                kv_transfer_params={STATS_KEY: panorama.stats()} if done else None,
                trace_headers=panorama.request.trace_headers,
            )
        )
        if done:
            panorama.request.status = RequestStatus.FINISHED_LENGTH_CAPPED
            self._end(panorama)
            if self.finished_req_ids_dict is not None:
                self.finished_req_ids_dict[client].add(panorama.id)

    def _give_up_preempted(self, outputs: Outputs) -> None:
        """End panoramas with a lane that lost its KV: vLLM would compute it again, and get something else if copied."""
        if not self._preempted:
            return
        lanes, self._preempted = self._preempted, set()
        for request in self.finish_requests(lanes, RequestStatus.FINISHED_ERROR):
            logger.error("vLLM preempted a lane of %s, whose cache cannot be made again", request.request_id)
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
                EngineCoreOutput(request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason())
            )
            if self.finished_req_ids_dict is not None:
                self.finished_req_ids_dict[request.client_index].add(request.request_id)

    def _advance(self) -> None:
        """Give back what is no longer needed, let in what fits, start every turn that can; by priority, then by age."""
        for panorama in self._panoramas.values():
            for lane in list(panorama.progress.releasable()):
                lane.released = True
                self._free_lane(panorama, lane.lane.index)
                self._admission.release(panorama.id, panorama.ahead_with())
        while self._queue and self._begin(self._queue[0]):
            del self._queue[0]
        for panorama in sorted(self._panoramas.values(), key=PanoramaState.priority_of):
            for lane in panorama.progress.lanes:
                if panorama.progress.can_start(lane) and self._admit(panorama, lane):
                    self._start_turn(panorama, lane)

    def _begin(self, panorama: PanoramaState) -> bool:
        blocks, lanes = panorama.lane_blocks(self.block_size), len(panorama.plan.lanes)
        if not self._admission.begin(panorama.id, blocks, panorama.min_resident, lanes, panorama.mean_resident):
            return False
        self._panoramas[panorama.id] = panorama
        return True

    def _admit(self, panorama: PanoramaState, lane: LaneProgress) -> bool:
        index = lane.lane.index
        if index not in panorama.admitted:
            if not self._admission.admit(panorama.id, panorama.ahead_with(index)):
                return False
            panorama.admit(index)
        return True

    def _start_turn(self, panorama: PanoramaState, lane: LaneProgress) -> None:
        request = panorama.turn_request(lane)
        copies = panorama.turn_copies(lane)
        copied = sum(copy.length for copy in copies)
        # Copied slots count as computed, so that vLLM allocates their blocks but does not run them.
        if lane.turn == 0:
            request.num_computed_tokens = copied
            super().add_request(request)
        else:
            super().add_request(request)
            self.requests[request.request_id].num_computed_tokens += copied
        if copies:
            assert isinstance(self.connector, ShiftConnector), "context reuse needs the ShiftConnector"
            self.connector.request_copies(request.request_id, copies)
            panorama.copied_slots += copied
        panorama.progress.start(lane)

    def _free_lane(self, panorama: PanoramaState, index: int) -> None:
        panorama.admitted.discard(index)
        super().finish_requests(lane_id(panorama.id, index), RequestStatus.FINISHED_STOPPED)

    def _end(self, panorama: PanoramaState) -> None:
        """Free everything of a panorama, whether it is done, aborted or failed."""
        for lane in panorama.lane_ids():
            if isinstance(self.connector, ShiftConnector):
                self.connector.forget(lane)
        super().finish_requests(panorama.lane_ids(), RequestStatus.FINISHED_STOPPED)
        panorama.admitted.clear()
        self._admission.end(panorama.id)
        self._panoramas.pop(panorama.id, None)
        self._queue = [waiting for waiting in self._queue if waiting is not panorama]


class RedirectScheduler(RedirectMixin, Scheduler):
    """For synchronous scheduling (the CPU)."""


class AsyncRedirectScheduler(RedirectMixin, AsyncScheduler):
    """For asynchronous scheduling (GPUs): the next step is scheduled while this one runs."""
