"""Data-parallel training: two processes take the step that one would take with the mean of their gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from two_workers import gradient, new_parameters, take_two_steps

from panoserve.train.muon import Muon
from panoserve.train.workers import run_workers


def test_two_processes_take_the_step_of_the_mean_gradient(tmp_path: Path) -> None:
    run_workers(take_two_steps, 2, tmp_path)
    parameters = new_parameters()
    optimizer = Muon(parameters, lr=0.1)
    for step in range(2):
        for index, parameter in enumerate(parameters):
            seed = 100 * step + 10 * index
            parameter.grad = (gradient(parameter, seed) + gradient(parameter, seed + 1)) / 2
        optimizer.step()
    for rank in range(2):
        made = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(made, [p.detach() for p in parameters], rtol=1e-3, atol=1e-4)
