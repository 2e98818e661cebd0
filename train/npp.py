"""Next-patch prediction (facts.md 4.1): train on squares of codes first, which makes a step p*p times shorter.

A patch is p x p codes. Its input is the mean of its codes' embeddings, its target all of its codes. With p = 1 this is
exactly LlamaGen's loss. The weights and the inference are the same at every p.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from panoserve.models.reference import ReferenceModel
from panoserve.train.fast import causal_logits


def patches(grid: Tensor, side: int, patch: int) -> Tensor:
    """[B, side * side, ...] in raster order -> [B, patches, patch * patch, ...], both in raster order."""
    k, rest = side // patch, grid.shape[2:]
    square = grid.view(-1, k, patch, k, patch, *rest)
    return square.transpose(2, 3).reshape(-1, k * k, patch * patch, *rest)


def patch_positions(side: int, patch: int) -> Tensor:
    """Positions in the model's table of the patches: the coordinates 0 .. side/patch - 1, not rescaled."""
    steps = torch.arange(side // patch)
    return (steps[:, None] * side + steps[None]).flatten()


def patch_logits(model: ReferenceModel, codes: Tensor, prefix: Tensor, patch: int) -> Tensor:
    """Teacher forcing over patches: logits [B, K, V] for codes [B, N] behind prefix [B, T, D], in prefix's dtype."""
    side, rows = model.config.grid_side, prefix.shape[1]
    embedded = model.tok_embeddings(codes)
    if patch > 1:
        embedded = patches(embedded, side, patch).mean(dim=2)
    x = torch.cat([prefix, embedded[:, :-1].to(prefix.dtype)], dim=1)
    positions = torch.cat([torch.arange(-rows, 0), patch_positions(side, patch)[:-1]])
    return causal_logits(model, x, positions)[:, rows - 1 :]


def patch_loss(model: ReferenceModel, codes: Tensor, prefix: Tensor, patch: int) -> Tensor:
    """Mean cross entropy of every code under its patch's distribution (nats)."""
    logits = patch_logits(model, codes, prefix, patch).float()
    if patch == 1:
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    targets = patches(codes, model.config.grid_side, patch)  # [B, K, P]
    return (logits.logsumexp(dim=-1, keepdim=True) - logits.gather(2, targets)).mean()
