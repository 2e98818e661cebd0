"""Data-parallel training on a few single-threaded processes of one machine.

Two processes of one thread each beat one process of two threads on the CPU: kernels that are too small to split cost
nothing, and nobody waits at a barrier inside every operation when something else runs on a core.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn


def run_workers(work: Callable[..., None], workers: int, *args: Any) -> None:
    """Call work(rank, *args) in `workers` processes of one thread; in this process if there is only one."""
    if workers == 1:
        work(0, *args)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the children when they start
    with tempfile.TemporaryDirectory() as folder:
        spawn(_start, (work, workers, Path(folder) / "store", args), nprocs=workers)


def _start(rank: int, work: Callable[..., None], workers: int, store: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    work(rank, *args)
    distributed.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def total(value: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if world() > 1:
        distributed.all_reduce(value)
    return value


def share(value: Tensor) -> Tensor:
    """Process 0's value, in place, in every process."""
    if world() > 1:
        distributed.broadcast(value, 0)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes below one another; every process must bring as many."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes."""
    if world() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    for grad, summed in zip(grads, sum_together(grads), strict=True):
        grad.copy_(summed / world())


def sum_together(values: list[Tensor]) -> list[Tensor]:
    """The sum of every tensor over the processes, in one exchange; the tensors themselves if there is one process."""
    if world() == 1 or not values:
        return values
    flat = total(torch.cat([value.flatten() for value in values]))
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]
