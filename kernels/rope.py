"""The turn of a cached key that moves to another place of the token grid (facts.md 1.3 and 7.3).

Rotations compose, so a key that was rotated for (row, column) and is turned by (rows, columns) more is the key of
(row + rows, column + columns): a lane can take over its parent's keys without running the model again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP8_MOST = 448.0  # of e4m3; what is larger becomes NaN


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Two-dimensional RoPE: interleaved pairs (2p, 2p + 1), the first half turned by rows, the rest by columns."""

    head_dim: int  # without padding
    theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.head_dim < 4 or self.head_dim % 4:
            raise ValueError(f"head_dim must be a positive multiple of 4 for two-dimensional RoPE, got {self.head_dim}")

    def frequencies(self) -> Tensor:
        """theta^(-2k/half) for k = 0 .. half/2 - 1, half = head_dim / 2: float32 [head_dim / 4]."""
        half = self.head_dim // 2
        exponents = torch.arange(0, half, 2, dtype=torch.float64) / half
        return (self.theta**-exponents).float()

    def turns(self, rows: Tensor, columns: Tensor) -> Tensor:
        """cos + i sin of every pair's angle, for shifts `rows` and `columns` [n]: complex64 [n, head_dim / 2]."""
        frequencies = self.frequencies().to(rows.device)
        angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)
        return torch.polar(torch.ones_like(angles), angles)


def turn(keys: Tensor, turns: Tensor) -> Tensor:
    """Turn keys [..., n, heads, head_dim or more] by `turns` [n, pairs]: float32 inside, rounded once to keys' dtype.

    Dims beyond 2 * pairs are padding and stay as they are.
    """
    turned = keys.to(torch.float32, copy=True)
    pairs = turned[..., : 2 * turns.shape[-1]].unflatten(-1, (-1, 2))
    torch.view_as_complex(pairs).mul_(turns[:, None])
    if keys.dtype == torch.float8_e4m3fn:
        turned.clamp_(-FP8_MOST, FP8_MOST)
    return turned.to(keys.dtype)
