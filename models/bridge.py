"""Lead a row's draws to the given code that they will meet (docs/redirection.md, "Loop").

Where a crop is given codes right of what it draws, as the one that closes a loop is, the model cannot see those of
the row that it is drawing: they come later in raster order. Bayes' rule says what their being there does to a draw:
its probability is multiplied by how likely it makes the given code, some draws later. That likelihood is taken for that
of a random walk in codebook space, whose step is what neighbouring codes of the rows around differ by. The walk is of
our own choosing, and so are its two constants, by figures and by looking (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from panoserve.configs.wire import Bridge

STRENGTH = 4.0  # 1 would be the walk's own likelihood
FADING = 1.5  # the power of the distance to the given code that its pull falls with; 1 would be the walk's
CODES_AT_ONCE = 1024  # whose distances to all others are held at a time


@dataclass(slots=True)
class Pull:
    """The penalties of one row's draws: `penalties` float32 [V] next to the given code, less farther from it."""

    penalties: Tensor
    length: int  # how many draws before the given code are led to it
    draws: int  # of the turn

    def apply(self, logits: Tensor, drawn: int) -> None:
        """Lower the logits [V] of the turn's draw number `drawn`, in place."""
        distance = self.draws - drawn
        if 0 < distance <= self.length:
            logits.sub_(self.penalties, alpha=distance**-FADING)


class Codebook:
    """The tokenizer's codebook on the unit sphere (facts.md 2.3), as a space in which codes are near or far."""

    def __init__(self, entries: Tensor) -> None:
        """entries: [V, code_dim], V at least 2."""
        self.entries = functional.normalize(entries.float(), dim=-1)
        chunks = self.entries.split(CODES_AT_ONCE)
        second = torch.cat([(chunk @ self.entries.T).topk(2).values[:, 1] for chunk in chunks])  # the first is itself
        self.finest = float((2 - 2 * second).median())  # squared distance to the next code

    @classmethod
    def of(cls, folder: Path, device: torch.device) -> Codebook | None:
        """That of a model folder; None without a tokenizer, whose codes nobody can look at."""
        weights = folder / "vq" / "model.safetensors"
        if not weights.is_file():
            return None
        with safe_open(weights, framework="pt", device=str(device)) as file:
            return cls(file.get_tensor("quantize.embedding.weight"))

    def pull(self, bridge: Bridge) -> Pull:
        """The penalties of a bridge: squared distances to its target over twice the mean squared step nearby."""
        left, right = self.entries[bridge.neighbours].view(-1, 2, self.entries.shape[1]).unbind(1)
        step = max(float((left - right).square().sum(1).mean()), self.finest)
        distances = 2 - 2 * (self.entries @ self.entries[bridge.target])
        return Pull(distances * (STRENGTH / (2 * step)), bridge.length, bridge.draws)
