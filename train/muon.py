"""Muon: momentum whose update is made (nearly) orthogonal, for matrices and convolutions.

Learns in about half the steps of Adam at these sizes. torch.optim.Muon (2.13) refuses convolutions and is otherwise the
same rule; everything that is not a hidden matrix (embeddings, norms, biases, first and last layers) belongs to AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from panoserve.train.precision import training_dtype
from panoserve.train.workers import rank, sum_together, world


def orthogonalise(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The singular vectors of `matrix` [m, n] with singular values near 1: quintic Newton-Schulz in training_dtype."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(training_dtype())
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; a convolution [out, in, h, w] counts as a matrix [out, in * h * w]."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for p, update in zip(moved, self._updates(moved, group["momentum"]), strict=True):
                scale = max(1.0, p.shape[0] / p[0].numel()) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)

    def _updates(self, moved: list[Tensor], momentum: float) -> list[Tensor]:
        """The orthogonal update of every parameter; each process computes its share, and all get all."""
        updates = []
        for index, p in enumerate(moved):
            assert p.grad is not None
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - momentum)
            if index % world() == rank():
                updates.append(orthogonalise(p.grad.lerp(buffer, momentum).flatten(1)).view_as(p))
            else:
                updates.append(torch.zeros_like(p))
        return sum_together(updates)
