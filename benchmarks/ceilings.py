"""The machine's measured ceilings, and the least time that a run could have taken under them.

A decode step reads every weight and every cached key and value it attends to; it multiplies every weight with every
row. So no run can be faster than max(bytes / bandwidth, flops / peak): the *floor*. The fraction reached is floor over
measured time. Both ceilings are measured in the same process as the run (design.md 5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from panoserve.configs.model import ModelConfig
from panoserve.kernels.packed_linear import pack, packable, packed_linear
from panoserve.redirect.plan import Plan, turns_of

READ_BYTES = 768 * 2**20  # far more than any last-level cache


def _best_seconds(run: Callable[[], object], repeats: int) -> float:
    """Least time of `repeats` calls after one to warm up: a ceiling is what the machine can do undisturbed."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


@torch.inference_mode()
def read_bandwidth(repeats: int = 3) -> float:
    """Bytes per second of a large read: the better of a sum over float32 and over int64."""
    buffer = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    words = buffer.view(torch.int64)
    return max(READ_BYTES / _best_seconds(read, repeats) for read in (buffer.sum, words.sum))


def linear_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of every matrix that one row meets once, layer by layer, then the output layer."""
    d, f = config.hidden_size, config.intermediate_size
    block = [(3 * d, d), (d, d), (2 * f, d), (d, f)]
    return block * config.num_hidden_layers + [(config.vocab_size, d)]


@torch.inference_mode()
def matmul_flops(config: ModelConfig, dtype: torch.dtype, rows: int, repeats: int = 3) -> float:
    """Flops per second of one layer's and the output layer's matrix products with `rows` rows.

    The best of torch in `dtype`, torch in float32 (faster where the processor has no instructions for bfloat16) and the
    kernel that the engine would use: a ceiling is what the machine can do, whoever does it.
    """
    shapes = sorted(set(linear_shapes(config)))
    flops = sum(2 * rows * outputs * inputs for outputs, inputs in shapes)
    products: list[Callable[[], object]] = []
    for kind in {dtype, torch.float32}:
        xs = [torch.randn(rows, inputs).to(kind) for _, inputs in shapes]
        weights = [torch.randn(*shape).to(kind) for shape in shapes]
        products.append(partial(_each, F.linear, xs, weights))
        if all(map(packable, weights)):
            products.append(partial(_each, packed_linear, xs, [pack(weight) for weight in weights]))
    return flops / min(_best_seconds(product, repeats) for product in products)


def _each(product: Callable[[Tensor, Tensor], Tensor], xs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for x, weight in zip(xs, weights, strict=True):
        product(x, weight)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine can do: bytes/s of a large read; flops/s of the model's products, best over row counts."""

    bandwidth: float
    peak: float
    flops_by_rows: dict[int, float]

    @classmethod
    def measure(cls, config: ModelConfig, dtype: torch.dtype, rows: Sequence[int]) -> Ceilings:
        """Measure with the row counts of the run, and with 64 and 256 rows, where a product is no longer a read."""
        counts = sorted({*rows, 64, 256})
        by_rows = {count: matmul_flops(config, dtype, count) for count in counts}
        return cls(read_bandwidth(), max(by_rows.values()), by_rows)

    def best_of(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements of the same ceilings."""
        by_rows = {rows: max(value, other.flops_by_rows[rows]) for rows, value in self.flops_by_rows.items()}
        return Ceilings(max(self.bandwidth, other.bandwidth), max(by_rows.values()), by_rows)

    def floor(self, work: Work) -> float:
        """Least seconds for `work`."""
        return max(work.bytes / self.bandwidth, work.flops / self.peak)


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes that must be read and flops that must be done."""

    bytes: float
    flops: float


def read_weights(config: ModelConfig) -> int:
    """Weights that every step reads in full: all but the embedding tables, of which it reads single rows."""
    return sum(outputs * inputs for outputs, inputs in linear_shapes(config))


def kv_bytes_per_slot(config: ModelConfig, itemsize: int) -> int:
    """Bytes of one position's keys and values in all layers, both guidance streams (facts.md 7.9, twice)."""
    return 2 * 2 * config.num_hidden_layers * config.hidden_size * itemsize


def slots_read(plan: Plan, prefix_rows: int = 1) -> int:
    """Cache slots that all passes of one panorama attend to; the rows of a chunk share one read of its context."""
    total = 0
    for lane in plan.lanes:
        for turn in turns_of(lane):
            first = turn.draw.start if turn.draw else turn.feed.start + turn.feed.length if turn.feed else 0
            total += sum(prefix_rows + first + step for step in range(turn.samples))
    return total


def panorama_work(
    config: ModelConfig, itemsize: int, kv_itemsize: int, steps: int, forward_tokens: int, slots: int
) -> Work:
    """The work of a whole run: `steps` engine steps that fed `forward_tokens` codes and attended to `slots` slots, with
    weights of `itemsize` bytes a number and a cache of `kv_itemsize`.

    flops = 2 * weights * 2 streams * tokens; attention's own are left out, which makes the floor lower, not higher.
    """
    weights = read_weights(config)
    return Work(
        bytes=steps * weights * itemsize + slots * kv_bytes_per_slot(config, kv_itemsize),
        flops=2 * weights * 2 * forward_tokens,
    )
