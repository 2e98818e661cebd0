"""Give some attention heads the text to look at, which LlamaGen's condition rows make hard to find.

Their keys are zero (facts.md 1.3), so a code looks at the text only as far as it looks away from all codes before it:
n rows of text and t codes whose scores are near zero leave the text a share of n / (n + t), a hundredth in the middle
of a crop. A small model then learns what the first codes need (the colour of the sky) and nothing that is decided
hundreds of codes later (what stands below it; figures in docs/log.md). A *text head* scores every code at about
-SCORE, so that nearly all of its attention is on the text; what it does with it is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoserve.models.reference import Attention, Block, ReferenceModel, rope_rows, rotate

LAYERS = (1, 3, 5, 7)  # one head in each
SCORE = 6.0
SLOW_PAIRS = 4  # of each axis: the pairs of a head that turn least over a crop


@dataclass(frozen=True, slots=True)
class TextHead:
    """A head that was opened, and the mean share of its attention that is on the text, over all codes of the crops."""

    layer: int
    head: int
    share: float


@torch.no_grad()
def open_text_heads(model: ReferenceModel, codes: Tensor, prefix: Tensor) -> list[TextHead]:
    """Turn the least used head of each of LAYERS into a text head that adds nothing yet.

    codes int64 [B, N] and their prefixes [B, n, D] are crops to measure on: what all inputs of a layer have in common
    is what the head's queries and keys are made of.
    """
    rows = prefix.shape[1]
    x = torch.cat([prefix, model.tok_embeddings(codes)], dim=1)
    rope = rope_rows(model.rope, torch.arange(x.shape[1]) - rows)
    opened = []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Block)
        if index in LAYERS:
            seen = layer.attention_norm(x)
            head = least_used(layer.attention)
            make_text_head(layer.attention, head, seen[:, rows:].flatten(0, 1))
            opened.append(TextHead(index, head, text_share(layer.attention, head, seen, rope, rows)))
        x = layer(x, rope, None, None)
    return opened


def least_used(attention: Attention) -> int:
    """The head whose values and output weights are smallest."""
    dim = attention.wo.weight.shape[0]
    values = attention.wqkv.weight[2 * dim :].unflatten(0, (attention.heads, -1)).norm(dim=(1, 2))
    outputs = attention.wo.weight.unflatten(1, (attention.heads, -1)).norm(dim=(0, 2))
    return int((values * outputs).argmin())


def make_text_head(attention: Attention, head: int, inputs: Tensor) -> None:
    """Set a head's queries and keys so that inputs [R, D] of codes score each other at -SCORE on average."""
    dim, size = inputs.shape[1], inputs.shape[1] // attention.heads
    mean = inputs.mean(dim=0)
    common = mean / mean.norm()
    typical = float((inputs @ common).mean())
    direction = torch.zeros(size)
    for axis in (0, 1):  # the first component of the slowest pairs of each axis
        stop = size // 2 * (axis + 1)
        direction[stop - 2 * SLOW_PAIRS : stop : 2] = (2 * SLOW_PAIRS) ** -0.5
    strength = (SCORE * size**0.5) ** 0.5 / typical
    query = strength * direction[:, None] * common
    here = slice(head * size, (head + 1) * size)
    attention.wqkv.weight[:dim][here] = query
    attention.wqkv.weight[dim : 2 * dim][here] = -query
    attention.wo.weight[:, here] = 0


def text_share(attention: Attention, head: int, seen: Tensor, rope: Tensor, rows: int) -> float:
    """Mean share of a head's attention that codes give to the condition rows; seen [B, rows + N, D]."""
    q, k, _ = (part.unflatten(-1, (attention.heads, -1)) for part in attention.wqkv(seen).chunk(3, dim=-1))
    q, k = rotate(q, rope)[:, :, head], rotate(k, rope)[:, :, head]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    causal = torch.ones_like(scores, dtype=torch.bool).tril()
    weights = scores.masked_fill(~causal, -torch.inf).softmax(dim=-1)
    return float(weights[:, rows:, :rows].sum(dim=-1).mean())
