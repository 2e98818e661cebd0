"""The least time and memory that panoramas take on a machine that is known by two numbers, before anything is run.

Every step of the wavefront (redirect/simulate.py) reads all weights once, and the keys and values of the lanes that
run; it multiplies the weights with every row. It cannot be faster than the machine's bandwidth and peak allow, and the
sum over all steps is the least time of the run: a floor, not a promise (docs/benchmarks.md says what part of it runs
reach).
"""

from __future__ import annotations

from dataclasses import dataclass

from panoserve.configs.model import ModelConfig
from panoserve.redirect.plan import Plan
from panoserve.redirect.simulate import play


@dataclass(frozen=True, slots=True)
class Machine:
    """bandwidth in bytes/s of memory reads; peak in flops/s of half-precision matrix products."""

    bandwidth: float
    peak: float


# The makers' published figures: SXM boards, dense bfloat16.
MACHINES = {
    "a100": Machine(2.039e12, 312e12),
    "h100": Machine(3.35e12, 989e12),
    "h200": Machine(4.8e12, 989e12),
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What panoramas of one plan take, all begun at once. Bytes and seconds are of the whole lot."""

    steps: int
    drawn: int
    forward_tokens: int
    lanes: int
    most_lanes: int  # that hold keys and values at once, if the cache is large enough for the whole wavefront
    kv_bytes: int  # of those
    least_lanes: int  # with which it can be drawn at all, one lane after another
    least_kv_bytes: int  # of those
    seconds: float


def kv_bytes_per_slot(config: ModelConfig, itemsize: int) -> int:
    """Bytes of one position's keys and values in all layers, of both streams if the model has two."""
    streams = 2 if config.unconditional else 1
    return 2 * streams * config.num_hidden_layers * config.hidden_size * itemsize


def forecast(
    plan: Plan, config: ModelConfig, machine: Machine, *, prefix_rows: int, itemsize: int, panoramas: int = 1
) -> Forecast:
    """Play the plan and add up every step's floor; `panoramas` of them in lock-step, on one machine."""
    from panoserve.benchmarks.ceilings import read_weights

    streams = 2 if config.unconditional else 1
    weights, kv = read_weights(config), kv_bytes_per_slot(config, itemsize)
    steps = tokens = most = drawn = 0
    seconds = 0.0
    for step in play(plan):
        inputs = len(step.ran)
        for lane, turn, first in step.began:
            computes_prefix = first and lane.lane.prefix_parent is None
            inputs += (turn.feed.length if turn.feed else 0) + turn.carry + prefix_rows * computes_prefix - 1
        slots = sum(prefix_rows + lane.settled for lane in step.ran)
        read = weights * itemsize + panoramas * slots * kv
        flops = 2 * weights * streams * inputs * panoramas
        seconds += max(read / machine.bandwidth, flops / machine.peak)
        steps, tokens, drawn = steps + 1, tokens + inputs, step.progress.drawn
        most = max(most, sum((lane.running or lane.turn > 0) and not lane.released for lane in step.progress.lanes))
    lane_bytes = (prefix_rows + config.grid.codes) * kv
    return Forecast(
        steps=steps,
        drawn=panoramas * drawn,
        forward_tokens=panoramas * tokens,
        lanes=panoramas * len(plan.lanes),
        most_lanes=panoramas * most,
        kv_bytes=panoramas * most * lane_bytes,
        least_lanes=plan.min_resident,
        least_kv_bytes=plan.min_resident * lane_bytes,
        seconds=seconds,
    )
