"""The codebook: nearest entry on the unit sphere (facts.md 2.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USAGE_RING = 65536  # length of the published `codebook_used` buffer, whatever the codebook size
COMMITMENT_WEIGHT = 0.25
DISTANCES_AT_ONCE = 1 << 24  # float32 distances held at a time: 64 MiB


class Quantized(NamedTuple):
    latents: Tensor  # [B, code_dim, h, w] normalised codes; gradients pass straight through to the input
    loss: Tensor  # codebook loss + 0.25 * commitment loss
    codes: Tensor  # int64 [B, h, w]


class VectorQuantizer(nn.Module):
    """A codebook of directions: inputs and entries are L2-normalised at every use, stored entries need not be."""

    codebook_used: Tensor

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, code_dim)
        with torch.no_grad():
            self.embedding.weight.uniform_(-1.0 / codebook_size, 1.0 / codebook_size)
            self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))
        self.register_buffer("codebook_used", torch.zeros(USAGE_RING))

    def codebook(self) -> Tensor:
        """Normalised entries, float32 [codebook_size, code_dim]."""
        return F.normalize(self.embedding.weight.float(), dim=-1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Codes int64 [n] of the entries nearest to normalised rows z [n, code_dim]; the first one on ties."""
        entries = self.codebook()
        squares = entries.square().sum(dim=1)
        chunk = max(1, DISTANCES_AT_ONCE // entries.shape[0])
        parts = []
        for rows in z.split(chunk):
            distances = torch.addmm(rows.square().sum(dim=1, keepdim=True) + squares, rows, entries.T, alpha=-2.0)
            parts.append(distances.argmin(dim=1))
        return torch.cat(parts)

    def encode(self, z: Tensor) -> Tensor:
        """Codes int64 [B, h, w] of unquantised latents z [B, code_dim, h, w]."""
        b, _, h, w = z.shape
        return self.nearest(self._rows(z)).view(b, h, w)

    def lookup(self, codes: Tensor) -> Tensor:
        """Normalised latents [B, code_dim, h, w], in the dtype of the codebook, of codes [B, h, w]."""
        entries = F.normalize(self.embedding(codes).float(), dim=-1)  # [B, h, w, code_dim]
        return entries.to(self.embedding.weight.dtype).permute(0, 3, 1, 2)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise z [B, code_dim, h, w] for training; float32 also under autocast. Records which codes were used."""
        b, dim, h, w = z.shape
        with torch.autocast(z.device.type, enabled=False):
            rows = self._rows(z)
            codes = self.nearest(rows.detach())
            entries = F.normalize(F.embedding(codes, self.embedding.weight.float()), dim=-1)
            loss = F.mse_loss(entries, rows.detach()) + COMMITMENT_WEIGHT * F.mse_loss(rows, entries.detach())
            straight = rows + (entries - rows).detach()
        if self.training:
            self._record(codes)
        return Quantized(straight.view(b, h, w, dim).permute(0, 3, 1, 2), loss, codes.view(b, h, w))

    def usage(self) -> float:
        """Share of the codebook among the last 65536 codes seen in training (unseen slots count as code 0)."""
        return self.codebook_used.unique().numel() / self.embedding.num_embeddings

    @staticmethod
    def _rows(z: Tensor) -> Tensor:
        """Normalised float32 rows [B*h*w, code_dim] of z [B, code_dim, h, w], row-major."""
        return F.normalize(z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1]), dim=-1)

    @torch.no_grad()
    def _record(self, codes: Tensor) -> None:
        newest = codes[-USAGE_RING:].to(self.codebook_used.dtype)
        self.codebook_used.copy_(torch.cat([self.codebook_used[newest.numel() :], newest]))
