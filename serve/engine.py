"""The engines: `Engine` draws a list of requests, `AsyncEngine` streams rows as they complete.

Both start vLLM with the redirection scheduler (settings.py), prepare requests alike (prepare.py) and collect rows alike
(drawing.py); they differ in which of vLLM's engines they drive.
"""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from panoserve.configs.model import ModelConfig
from panoserve.errors import (
    CacheTooSmallError,
    InvalidRequestError,
    ModelFolderError,
    PanoramaFailedError,
    PanoserveError,
)
from panoserve.kernels.kv_layout import movable
from panoserve.redirect.layout import plan_of
from panoserve.serve.drawing import Drawing, Row
from panoserve.serve.endless import AsyncEndless, Endless, Frontier
from panoserve.serve.folder import ModelFolder
from panoserve.serve.prepare import Preparer, Submission
from panoserve.serve.request import Panorama, PanoramaRequest
from panoserve.serve.settings import engine_args, set_environment, starting

if TYPE_CHECKING:
    from PIL.Image import Image
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

    from panoserve.vq.model import VQModel

Advance = Callable[[int], Any]  # told how many codes more are drawn


class _EngineBase(ABC):
    """What both engines share: the model folder, preparation, the KV check and the decoder."""

    def __init__(
        self,
        model_dir: Path | str,
        *,
        dtype: str = "bfloat16",
        context: str = "reuse",
        kv_cache_gib: float | None = None,
        max_lanes: int | None = None,
        async_scheduling: bool = False,
        guidance: bool = True,
        load_format: str = "auto",
        kv_cache_dtype: str = "auto",
    ) -> None:
        """Start vLLM on a model folder.

        dtype: float32, bfloat16 or float16. context: how a crop gets its given codes, `reuse` (copy KV) or `recompute`
        (feed them; the exact method). kv_cache_gib: size of the KV cache; by default what `max_lanes` lanes take, but
        at most 40 % of free memory. max_lanes: most crops drawn at once (64). async_scheduling: for GPUs. guidance:
        False serves the conditional stream alone, at half the cost. load_format: "dummy" for random weights.
        kv_cache_dtype: "auto", as the model, or "fp8", e4m3: half the memory, faster where many crops are drawn at
        once, and other pictures (docs/log.md); on a CPU it needs AVX-512.

        Raises ModelFolderError, EnvironmentProblem or CacheTooSmallError before vLLM is started wherever possible.
        """
        self.folder = ModelFolder(model_dir)
        self._arguments = engine_args(
            self.folder,
            dtype=dtype,
            context=context,
            kv_cache_gib=kv_cache_gib,
            max_lanes=max_lanes,
            async_scheduling=async_scheduling,
            guidance=guidance,
            load_format=load_format,
            kv_cache_dtype=kv_cache_dtype,
        )
        self._preparer = Preparer(self.folder, context)

    @property
    def config(self) -> ModelConfig:
        return self.folder.config

    @property
    @abstractmethod
    def vllm_config(self) -> VllmConfig:
        """vLLM's configuration, as the running engine completed it."""

    @property
    def context(self) -> str:
        """What requests are drawn with that name no context."""
        return self._preparer.context

    @cached_property
    def vq(self) -> VQModel:
        """The VQ tokenizer, loaded when first used. It decodes in bfloat16 if the engine draws in bfloat16 and the
        machine has instructions for it, else in float32 (nobody knows that a float16 decoder does not overflow); it
        encodes in float32 always.
        """
        if not self.folder.has_vq:
            raise ModelFolderError(
                f"{self.folder.path} holds no vq/, so codes cannot be decoded; pass decode=False, or convert a VQ "
                "checkpoint with `panoserve convert ... --vq`"
            )
        from panoserve.vq.io import load_vq

        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Without such instructions a decode in bfloat16 takes 2.6 times as long as one in float32 (docs/log.md).
        fast = device == "cuda" or torch.cpu._is_avx512_bf16_supported()
        dtype = torch.bfloat16 if fast and self.vllm_config.model_config.dtype == torch.bfloat16 else torch.float32
        vq = load_vq(self.folder.path / "vq", dtype, device)
        ours, its = (self.config.vocab_size, self.config.downsample), (vq.config.codebook_size, vq.config.downsample)
        if ours != its:
            raise ModelFolderError(
                f"the tokenizer in {self.folder.path} has {its[0]} codes of {its[1]} pixels, but the model draws "
                f"{ours[0]} codes of {ours[1]}; convert the checkpoint with the tokenizer that it was trained with"
            )
        return vq

    def decode(self, codes: torch.Tensor, loop: bool = False, scenes: bool = False) -> Image:
        """The picture of a canvas of codes [H, W].

        loop: its right edge is decoded to meet the left one (vq/loops.py). scenes: it shows several, and is decoded in
        windows.
        """
        from panoserve.vq.endless import decode_windows
        from panoserve.vq.images import to_pil
        from panoserve.vq.loops import decode_loop
        from panoserve.vq.tiled import decode_tiled

        if scenes and not loop:
            return to_pil(decode_windows(self.vq, codes, self.config.grid_side))
        return to_pil((decode_loop if loop else decode_tiled)(self.vq, codes[None])[0])

    def picture(self, panorama: Panorama) -> Image:
        """The picture of what was drawn; one that is smaller than a crop is cut out of the crop's picture."""
        request = panorama.request
        if panorama.canvas is None:
            return self.decode(panorama.codes, request.loop, scenes=bool(request.prompts))
        whole = self.decode(panorama.canvas, request.loop, scenes=bool(request.prompts))
        return whole.crop(request.frame(self.config).box(self.config.downsample))

    def _prepare(self, requests: Sequence[PanoramaRequest], decode: bool) -> list[Submission]:
        """Check everything about `requests` before any is submitted."""
        submissions = self._preparer.prepare(requests)
        for submission in submissions:
            self._check_cache(submission)
            self._check_streams(submission.request)
        if decode and submissions:
            _ = self.vq
        return submissions

    def _check_cache(self, submission: Submission) -> None:
        """Raise CacheTooSmallError if the panorama could never be drawn in this engine's cache, and InvalidRequestError
        if its context moves what cannot be moved.
        """
        cache, lanes = self.vllm_config.cache_config, self.vllm_config.scheduler_config.max_num_seqs
        captions = submission.prompt.get("multi_modal_data", {}).get("caption")
        slots = (1 if captions is None else max(map(len, captions))) + self.config.grid.codes
        lane_blocks = -(-slots // cache.block_size)
        blocks = (cache.num_gpu_blocks or 0) - 1  # vLLM keeps one for itself
        args = submission.request.engine_args(self.config)
        cache_dtype, device = str(cache.cache_dtype), self.vllm_config.device_config.device_type
        if args.context == "reuse" and not movable(cache_dtype, device):
            raise InvalidRequestError(
                f"context 'reuse' moves keys and values, but not those of a KV cache in {cache_dtype} on {device}; use "
                "context='recompute', or leave --kv-cache-dtype out when starting",
                "context",
            )
        needed = plan_of(args, self.config.grid).min_resident
        holds = min(lanes, blocks // lane_blocks)
        if needed > holds:
            raise CacheTooSmallError(
                f"context {args.context!r} needs {needed} lanes at once ({needed * lane_blocks} KV blocks of "
                f"{cache.block_size} slots), but this engine holds {holds} ({blocks} blocks, max_lanes {lanes}); raise "
                "kv_cache_gib or max_lanes, or use context='recompute'"
            )

    def _check_streams(self, request: PanoramaRequest) -> None:
        negative = request.negative_prompt is not None or request.negative_features is not None
        if negative and self.vllm_config.model_config.hf_config.streams == 1:
            raise InvalidRequestError(
                "a negative prompt needs guidance, but this engine was started with guidance=False", "negative_prompt"
            )

    def _drawing(self, submission: Submission) -> Drawing:
        return Drawing(submission, submission.request.canvas(self.config))

    def _panorama(self, drawing: Drawing, decode: bool) -> Panorama:
        assert drawing.stats is not None
        request, drawn = drawing.submission.request, drawing.codes
        frame = request.frame(self.config)
        codes = drawn[frame.top : frame.top + frame.rows, frame.left : frame.left + frame.columns]
        canvas = drawn if codes.shape != drawn.shape else None
        panorama = Panorama(request, codes, None, drawing.stats, drawing.submission.truncated, canvas)
        return replace(panorama, image=self.picture(panorama)) if decode else panorama


class Engine(_EngineBase):
    """Draws lists of panoramas. Use it as a context manager, or call `close`.

    vLLM runs in this process, which starts soonest; a second engine beside it gets a process of its own, because a
    vLLM worker's KV connector belongs to its whole process.
    """

    _in_process: ClassVar[Engine | None] = None

    def __init__(self, model_dir: Path | str, **options: Any) -> None:
        super().__init__(model_dir, **options)
        set_environment()
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        own_process = Engine._in_process is not None
        with starting():
            self._engine = LLMEngine.from_engine_args(EngineArgs(**self._arguments), enable_multiprocessing=own_process)
        if not own_process:
            Engine._in_process = self
        self.steps = 0  # engine steps since the start
        self._drawing_lock = threading.Lock()

    __init__.__doc__ = _EngineBase.__init__.__doc__

    @property
    def vllm_config(self) -> VllmConfig:
        return self._engine.vllm_config

    def generate(
        self, requests: Sequence[PanoramaRequest], decode: bool = True, progress: bool = True
    ) -> list[Panorama]:
        """Draw all `requests` in one batch; results in their order.

        Raises InvalidRequestError before anything is drawn if any request is wrong, PanoramaFailedError if the engine
        fails. With `decode`, pictures are made once all codes are drawn. `progress` shows a bar on stderr.
        """
        from tqdm import tqdm

        submissions = self._prepare(requests, decode)
        codes = sum(submission.params.max_tokens or 0 for submission in submissions)
        with tqdm(total=codes, unit="code", desc="drawing", disable=not progress) as bar:
            drawings = self._draw(submissions, bar.update)
        with tqdm(drawings, unit="picture", desc="decoding", disable=not (progress and decode)) as bar:
            return [self._panorama(drawing, decode) for drawing in bar]

    def draw(
        self, requests: Iterable[PanoramaRequest], advance: Advance = int
    ) -> Iterator[tuple[int, Panorama | PanoserveError]]:
        """Draw a sequence of requests of any length, without pictures; yields (index, result) as each is finished.

        Requests are taken from the sequence while fewer than twice the lanes that the engine draws at once are waiting
        or running. A request that is wrong or fails gives its error as result, and the others go on. `advance` is told
        how many codes more are drawn. Leaving the loop aborts what is unfinished.
        """
        room = 2 * self.vllm_config.scheduler_config.max_num_seqs
        waiting = enumerate(requests)
        running: dict[str, Drawing] = {}
        indices: dict[str, int] = {}
        lanes: dict[str, int] = {}
        upcoming = next(waiting, None)
        with self._alone(running):
            while upcoming is not None or running:
                if upcoming is not None and sum(lanes[request_id] for request_id in running) < room:
                    index, request = upcoming
                    upcoming = next(waiting, None)
                    try:
                        [submission] = self._prepare([request], decode=False)
                        args = submission.request.engine_args(self.config)
                        request_id = self._submit(submission, running)
                    except PanoserveError as error:
                        yield index, error
                        continue
                    except Exception as error:  # of this request alone; the others are not to be lost for it
                        yield index, PanoramaFailedError(f"it could not be prepared: {type(error).__name__}: {error}")
                        continue
                    indices[request_id], lanes[request_id] = index, len(plan_of(args, self.config.grid).lanes)
                    continue
                for request_id, failure in self._step(running, advance):
                    drawing = running.pop(request_id)
                    yield indices[request_id], self._panorama(drawing, decode=False) if failure is None else failure

    def endless(self, request: PanoramaRequest, advance: Advance = int, **options: Any) -> Endless:
        """An iterator over the strips of a panorama that goes on for as long as it is asked (endless.py).

        The request has no width (or, growing downwards, no height); with `given`, the panorama goes on from those
        codes. options: direction, `right` or `down`; crops, how many a segment has (as many as a crop has columns);
        limit, the pixels after which to stop; start, where the first given column (row) stands.
        """
        return Endless(self, Frontier(request, self.config, self._preparer.context, **options), advance)

    def _draw(self, submissions: Sequence[Submission], advance: Advance) -> list[Drawing]:
        """Draw all of a batch; the first failure ends it."""
        running: dict[str, Drawing] = {}
        with self._alone(running):
            for submission in submissions:
                self._submit(submission, running)
            drawings = list(running.values())
            while running:
                for request_id, error in self._step(running, advance):
                    del running[request_id]
                    if error is not None:
                        raise error
        return drawings

    @contextmanager
    def _alone(self, running: Mapping[str, Drawing]) -> Iterator[None]:
        """Keep other drawings away, which would be given this one's rows; abort what is unfinished in the end."""
        if not self._drawing_lock.acquire(blocking=False):
            raise PanoserveError(
                "this engine is drawing already, in another thread or in a loop over draw() that is not at its end; "
                "end that first, or draw both in one call, or use AsyncEngine, which draws any number at a time"
            )
        try:
            yield
        finally:
            try:
                if running:
                    self._engine.abort_request(list(running))
            finally:
                self._drawing_lock.release()

    def _submit(self, submission: Submission, running: dict[str, Drawing]) -> str:
        request_id = uuid.uuid4().hex
        priority = submission.request.priority
        self._engine.add_request(request_id, submission.prompt, submission.params, priority=priority)
        running[request_id] = self._drawing(submission)
        return request_id

    def _step(self, running: Mapping[str, Drawing], advance: Advance) -> list[tuple[str, PanoramaFailedError | None]]:
        """One engine step; the requests that it finished, with what went wrong.

        If the step itself fails, so does everything that is under way, and the engine is ready for more.
        """
        self.steps += 1
        try:
            outputs = self._engine.step()
        except Exception as error:  # anything that a model, a kernel or vLLM can raise
            self._engine.abort_request(list(running))
            reason = " ".join(str(error).split()) or type(error).__name__
            failure = PanoramaFailedError(f"an engine step failed ({type(error).__name__}: {reason}); draw it again")
            failure.__cause__ = error
            return [(request_id, failure) for request_id in running]
        finished: list[tuple[str, PanoramaFailedError | None]] = []
        for output in outputs:
            drawing = running[output.request_id]
            try:
                advance(sum(len(row.codes) for row in drawing.take(output)))
            except PanoramaFailedError as error:
                finished.append((output.request_id, error))
            else:
                if drawing.stats is not None:
                    finished.append((output.request_id, None))
        return finished

    def close(self) -> None:
        """Stop vLLM and free its memory."""
        self._engine.engine_core.shutdown()
        if Engine._in_process is self:
            Engine._in_process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncEngine(_EngineBase):
    """Streams rows of many panoramas at once; vLLM runs in a process of its own."""

    def __init__(self, model_dir: Path | str, **options: Any) -> None:
        super().__init__(model_dir, **options)
        set_environment()
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        with starting():
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments))

    __init__.__doc__ = _EngineBase.__init__.__doc__

    @classmethod
    def over(cls, engine: AsyncLLM, folder: ModelFolder, context: str) -> Self:
        """Draw with a vLLM engine that runs already and that someone else stops: the one of vLLM's API server."""
        self = cls.__new__(cls)
        self.folder = folder
        self._preparer = Preparer(folder, context)
        self._engine = engine
        return self

    @property
    def vllm_config(self) -> VllmConfig:
        return self._engine.vllm_config

    async def stream(self, request: PanoramaRequest) -> AsyncIterator[Row]:
        """Yield the rows of one panorama, top to bottom, as they complete; leaving the loop aborts the drawing."""
        drawing = self.prepare(request)
        frame = drawing.submission.request.frame(self.config)
        async for row in self.rows(drawing):
            if 0 <= row.index - frame.top < frame.rows:
                yield Row(row.index - frame.top, row.codes[frame.left : frame.left + frame.columns])

    def prepare(self, request: PanoramaRequest) -> Drawing:
        """Check a request and encode its text, which takes a while: call it in a thread where others wait."""
        [submission] = self._prepare([request], decode=False)
        return self._drawing(submission)

    async def generate(self, request: PanoramaRequest, decode: bool = True) -> Panorama:
        """Draw one panorama; call it many times at once to batch them."""
        [submission] = self._prepare([request], decode)
        drawing = self._drawing(submission)
        async for _ in self.rows(drawing):
            pass
        return self._panorama(drawing, decode)

    def endless(self, request: PanoramaRequest, **options: Any) -> AsyncEndless:
        """As Engine.endless, for `async for`."""
        return AsyncEndless(self, Frontier(request, self.config, self._preparer.context, **options))

    async def rows(
        self, drawing: Drawing, request_id: str | None = None, trace_headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Row]:
        """Submit a prepared request and yield its rows; `request_id` names it in vLLM's log and traces, of which
        `trace_headers` (W3C trace context) are the parent.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        submission = drawing.submission
        try:
            request_id = request_id or uuid.uuid4().hex
            priority = submission.request.priority
            async for output in self._engine.generate(
                submission.prompt, submission.params, request_id, priority=priority, trace_headers=trace_headers
            ):
                for row in drawing.take(output):
                    yield row
        except EngineDeadError as error:
            raise PanoramaFailedError(f"the engine process died: {error}; its log says why") from error

    def close(self) -> None:
        """Stop the engine process."""
        self._engine.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()
