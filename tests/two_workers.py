"""What each training process of test_workers.py does.

In a module of its own: a spawned process finds it by the name that pytest's `pythonpath` gives it, whatever folder the
tests were started in, which is not so for the test files themselves.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from panoserve.train.muon import Muon
from panoserve.train.workers import average_gradients


def new_parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(3, 5, 2, 2)), nn.Parameter(torch.randn(2, 8))]


def gradient(parameter: nn.Parameter, seed: int) -> torch.Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))


def take_two_steps(rank: int, folder: Path) -> None:
    parameters = new_parameters()
    optimizer = Muon(parameters, lr=0.1)
    for step in range(2):
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient(parameter, 100 * step + 10 * index + rank)
        average_gradients(parameters)
        optimizer.step()
    torch.save([p.detach() for p in parameters], folder / f"{rank}.pt")
