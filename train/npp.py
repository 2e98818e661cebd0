"""Next-patch prediction (facts.md 4.1): train on squares of codes first, which makes a step p*p times shorter.

A patch is p x p codes. Its input is the mean of its codes' embeddings, its target all of its codes. With p = 1 this is
exactly LlamaGen's loss. The weights and the inference are the same at every p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panoserve.models.reference import ReferenceModel
from panoserve.train.fast import causal_states, logits_of


def patches(grid: Tensor, side: int, patch: int) -> Tensor:
    """[B, side * side, ...] in raster order -> [B, patches, patch * patch, ...], both in raster order."""
    k, rest = side // patch, grid.shape[2:]
    square = grid.view(-1, k, patch, k, patch, *rest)
    return square.transpose(2, 3).reshape(-1, k * k, patch * patch, *rest)


def patch_positions(side: int, patch: int) -> Tensor:
    """Positions in the model's table of the patches: the coordinates 0 .. side/patch - 1, not rescaled."""
    steps = torch.arange(side // patch)
    return (steps[:, None] * side + steps[None]).flatten()


def patch_states(model: ReferenceModel, codes: Tensor, prefix: Tensor, patch: int) -> list[Tensor]:
    """Teacher forcing over patches: for codes [B, N] behind prefix [B, T, D] the states [B, K, D] after every layer
    from which the K patches are predicted, in prefix's dtype.
    """
    side, rows = model.config.grid_side, prefix.shape[1]
    embedded = model.tok_embeddings(codes)
    if patch > 1:
        embedded = patches(embedded, side, patch).mean(dim=2)
    x = torch.cat([prefix, embedded[:, :-1].to(prefix.dtype)], dim=1)
    positions = torch.cat([torch.arange(-rows, 0), patch_positions(side, patch)[:-1]])
    return [state[:, rows - 1 :] for state in causal_states(model, x, positions)]


def patch_logits(model: ReferenceModel, codes: Tensor, prefix: Tensor, patch: int) -> Tensor:
    """Teacher forcing over patches: logits [B, K, V]."""
    return logits_of(model, patch_states(model, codes, prefix, patch)[-1])


def patch_losses(
    model: ReferenceModel, logits: Tensor, codes: Tensor, patch: int, given: Tensor | None = None
) -> Tensor:
    """Mean cross entropy [B] of every crop's codes [B, N] under its patches' distributions, logits [B, K, V] (nats).

    given: bool [B, N], codes that are known and not predicted, and so not in the mean; none if left out.
    """
    targets = patches(codes, model.config.grid_side, patch)  # [B, K, P]
    logits = logits.float()
    losses = logits.logsumexp(dim=-1, keepdim=True) - logits.gather(2, targets)
    if given is None:
        return losses.flatten(1).mean(dim=1)
    drawn = ~patches(given, model.config.grid_side, patch)
    return (losses * drawn).flatten(1).sum(dim=1) / drawn.flatten(1).sum(dim=1)


def patch_loss(model: ReferenceModel, codes: Tensor, prefix: Tensor, patch: int) -> Tensor:
    """Mean cross entropy of every code under its patch's distribution (nats)."""
    return patch_losses(model, patch_logits(model, codes, prefix, patch), codes, patch).mean()
