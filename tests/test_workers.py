"""Data-parallel training: two processes take the step that one would take with the mean of their gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from panoserve.train.muon import Muon
from panoserve.train.workers import average_gradients, run_workers


def _parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(3, 5, 2, 2)), nn.Parameter(torch.randn(2, 8))]


def _gradient(parameter: nn.Parameter, seed: int) -> torch.Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))


def _two_steps(rank: int, folder: Path) -> None:
    parameters = _parameters()
    optimizer = Muon(parameters, lr=0.1)
    for step in range(2):
        for index, parameter in enumerate(parameters):
            parameter.grad = _gradient(parameter, 100 * step + 10 * index + rank)
        average_gradients(parameters)
        optimizer.step()
    torch.save([p.detach() for p in parameters], folder / f"{rank}.pt")


def test_two_processes_take_the_step_of_the_mean_gradient(tmp_path: Path) -> None:
    run_workers(_two_steps, 2, tmp_path)
    parameters = _parameters()
    optimizer = Muon(parameters, lr=0.1)
    for step in range(2):
        for index, parameter in enumerate(parameters):
            seed = 100 * step + 10 * index
            parameter.grad = (_gradient(parameter, seed) + _gradient(parameter, seed + 1)) / 2
        optimizer.step()
    for rank in range(2):
        made = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(made, [p.detach() for p in parameters], rtol=1e-3, atol=1e-4)
