"""What an engine step spends its time on, by clocks around the parts of a running engine.

Parts are told apart by where they happen: linear layers are matrix products, vLLM's attention layers are attention (the
writing of keys and values included), the rest of the model's forward pass is element-wise work, and so on. On a CPU
every operator runs when it is called, so the clocks see all of it. Time inside a part inside another part counts for
the inner one only; what no clock sees is the engine's own: batch preparation, outputs, Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from panoserve.serve.engine import Engine

PARTS = ("matrix products", "attention", "element-wise", "sampling", "KV copies", "scheduler", "engine")
REST = "engine"


class Stopwatch:
    """Seconds spent in named parts, which may nest: an inner part's time is not the outer one's."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0  # when the innermost open part was entered or came back to

    def enter(self, part: str) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._open.append(part)
        self._since = now

    def leave(self) -> None:
        now = self._clock()
        self.seconds[self._open.pop()] += now - self._since
        self._since = now

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count what was part of `source` as part of `target`."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed as `part`."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.enter(part)
            try:
                return function(*arguments, **options)
            finally:
                self.leave()

        return timed


def _parts_of(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The layers of a model that have a part of their own; everything else in its forward pass is element-wise."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    yield model, "element-wise"
    for layer in model.modules():
        if isinstance(layer, LinearBase | LogitsProcessor):
            yield layer, "matrix products"
        elif isinstance(layer, Attention):
            yield layer, "attention"


@contextmanager
def parts_timed(engine: Engine) -> Iterator[Stopwatch]:
    """Clocks on an engine that runs in this process; they are taken off again at the end."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    watch = Stopwatch()
    hooks: list[Any] = []
    replaced: list[tuple[Any, str]] = []

    def hook(layer: nn.Module, part: str) -> None:
        hooks.append(layer.register_forward_pre_hook(lambda *_: watch.enter(part)))
        hooks.append(layer.register_forward_hook(lambda *_: watch.leave()))

    def time_method(owner: Any, name: str, part: str) -> None:
        setattr(owner, name, watch.around(part, getattr(owner, name)))
        replaced.append((owner, name))

    def split(model: Any) -> None:
        """Layers that ran in one call (models/decode_steps.py) say themselves what they spent on what."""
        if (layers := model.decode_steps.layers) is not None:
            for part, seconds in zip(("matrix products", "attention"), layers.take_seconds(), strict=True):
                watch.move(seconds, "element-wise", part)

    def on_worker(worker: Any) -> None:
        model = worker.get_model()
        if (layers := model.decode_steps.layers) is not None:
            layers.take_seconds()
        for layer, part in _parts_of(model):
            hook(layer, part)
        hooks.append(model.register_forward_hook(lambda *_: split(model)))
        hook(worker.model_runner.sampler, "sampling")
        time_method(model, "compute_logits", "sampling")  # what it does beside its product: mixing the two streams

    core = engine._engine
    core.collective_rpc(on_worker)
    time_method(get_kv_transfer_group(), "start_load_kv", "KV copies")
    scheduler = core.engine_core.engine_core.scheduler
    time_method(scheduler, "schedule", "scheduler")
    time_method(scheduler, "update_from_output", "scheduler")
    time_method(engine, "_step", REST)
    try:
        yield watch
    finally:
        for handle in hooks:
            handle.remove()
        for owner, name in replaced:
            delattr(owner, name)  # the class's own method shows again
