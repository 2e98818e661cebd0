"""The transformer's layers again, written for training on a CPU: the same weights and the same function as
`ReferenceModel.blocks` without cache, in fewer passes over memory (rotation as a complex product, fused norms, one
matrix product for both halves of the feed-forward, plain causal attention).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from panoserve.models.reference import Block, ReferenceModel, RMSNorm, rope_rows

BAND = 160  # rows of attention scores at a time


def causal_states(model: ReferenceModel, x: Tensor, positions: Tensor) -> list[Tensor]:
    """Embeddings x [B, S, D] at grid `positions` [S] -> the states [B, S, D] after every layer, in the dtype of x."""
    turns = torch.view_as_complex(rope_rows(model.rope, positions).contiguous())[:, None]  # [S, 1, hd/2]
    future = torch.full((len(positions), len(positions)), -torch.inf, dtype=x.dtype).triu(1)
    states = []
    for layer in model.layers:
        assert isinstance(layer, Block)
        x = x + _attend(layer, _norm(layer.attention_norm, x), turns, future)
        h = _norm(layer.ffn_norm, x)
        both = torch.cat([layer.feed_forward.w1.weight, layer.feed_forward.w3.weight]).to(x.dtype)
        gate, value = F.linear(h, both).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * value, layer.feed_forward.w2.weight.to(x.dtype))
        states.append(x)
    return states


def logits_of(model: ReferenceModel, state: Tensor) -> Tensor:
    """Logits [..., V] of the state [..., D] after the last layer."""
    return F.linear(_norm(model.norm, state), model.output.weight.to(state.dtype))


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.eps)


def _attend(layer: Block, x: Tensor, turns: Tensor, future: Tensor) -> Tensor:
    heads = layer.attention.heads
    qkv = F.linear(x, layer.attention.wqkv.weight.to(x.dtype)).unflatten(-1, (3 * heads, -1))  # [B, S, 3H, hd]
    turned = torch.view_as_complex(qkv[:, :, : 2 * heads].float().unflatten(-1, (-1, 2))) * turns
    q, k = torch.view_as_real(turned).flatten(-2).to(x.dtype).transpose(1, 2).chunk(2, dim=1)
    v = qkv[:, :, 2 * heads :].transpose(1, 2)
    # Written out: at this length the backward of torch 2.13's fused CPU attention costs more than these products. In
    # bands of rows, since a band needs no keys behind its last row.
    bands = []
    for start in range(0, x.shape[1], BAND):
        rows, seen = slice(start, start + BAND), slice(0, start + BAND)
        scores = (q[:, :, rows] * q.shape[-1] ** -0.5) @ k[:, :, seen].transpose(-1, -2) + future[rows, seen]
        bands.append(scores.softmax(dim=-1) @ v[:, :, seen])
    out = torch.cat(bands, dim=2).transpose(1, 2).flatten(-2)
    return F.linear(out, layer.attention.wo.weight.to(x.dtype))
