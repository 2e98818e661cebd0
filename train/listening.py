"""Teach the transformer to carry what the caption says past every code, until it is needed.

What stands in a landscape is worth ln 6 = 1.8 nats, once, at the first codes of the horizon: 0.003 nats a code of a
crop, too little to be found by a loss of all codes before the scenes are known by heart (figures in docs/log.md). The
`Listener` asks at every code what the caption's scene has (its feature, time, weather ...), from the hidden states
after the middle layer, so that text heads learn to fetch it; the layers behind use it because it helps. It is a part of
the training only. Some crops of a batch come with the caption of another scene: there the picture does not tell.

The `RowFinder` asks likewise in which row a code stands. Nothing tells a LlamaGen model (its positions are relative,
its condition rows have none), so it must count; one that lost count draws sky down to the lower edge.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoserve.train.scenes.spec import EXTRAS, FEATURES, MOODS, SEASONS, TIMES, WEATHERS, SceneSpec

WEIGHT = 0.2  # of the mean cross entropy of an attribute, beside nats a code


def _all(families: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({value for values in families.values() for value in values}))


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "feature": FEATURES,
    "extra": _all(EXTRAS),
    "time": TIMES,
    "mood": _all(MOODS),
    "weather": WEATHERS,
    "season": SEASONS,
}


def labels(spec: SceneSpec) -> list[int]:
    """The number of the scene's value of each of ATTRIBUTES."""
    return [values.index(getattr(spec, name)) for name, values in ATTRIBUTES.items()]


class Listener(nn.Module):
    """Linear classifiers of every attribute on hidden states [..., D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(dim, sum(len(values) for values in ATTRIBUTES.values()))

    def losses(self, states: Tensor, truth: Tensor) -> Tensor:
        """Mean cross entropy (nats) of each attribute [A] for states [B, K, D] of captions with labels [B, A]."""
        normal = F.layer_norm(states.float(), states.shape[-1:])
        parts = self.output(normal).split([len(values) for values in ATTRIBUTES.values()], dim=-1)
        return torch.stack(
            [
                F.cross_entropy(part.flatten(0, 1), truth[:, i].repeat_interleave(states.shape[1]))
                for i, part in enumerate(parts)
            ]
        )


class RowFinder(nn.Module):
    """A linear classifier of the row on hidden states [..., D]."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.output = nn.Linear(dim, side)

    def loss(self, states: Tensor, patch: int) -> Tensor:
        """Mean cross entropy (nats) for states [B, K, D] of patches in raster order, each beginning in a row."""
        normal = F.layer_norm(states.float(), states.shape[-1:])
        rows = torch.arange(states.shape[1]) // (self.side // patch) * patch
        return F.cross_entropy(self.output(normal).flatten(0, 1), rows.repeat(len(states)))
