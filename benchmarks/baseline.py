"""The sequential baseline: a panorama drawn as the upstream method does it, in well-written plain PyTorch.

One code at a time, one crop after another. Each crop starts with one pass over its condition rows and the given codes
of its first row; from there every code, given or drawn, goes through the model alone: N - (g - c) passes for each crop
after the first (facts.md 6.4; upstream leaves those first given codes stale instead, at the same number of passes).

Nothing is held back: fused query-key-value weights, one preallocated key-value cache, attention over its filled part
only, both guidance streams as one batch, inference mode, top-k sampling. Several panoramas can share each step as one
batch (upstream's own batching). Eager PyTorch on purpose: compilation would help both sides alike.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from panoserve.configs.model import ModelConfig
from panoserve.models.reference import ReferenceModel, rope_rows, rope_table


def random_weights(config: ModelConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the model's real shapes under upstream's key names; norms are one."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ReferenceModel(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape, dtype=dtype)
        if name.endswith("norm.weight")
        else torch.empty(shape, dtype=dtype).normal_(std=0.02, generator=generator)
        for name, shape in shapes.items()
    }


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block's weights; every matrix is [outputs, inputs] as in the checkpoint."""

    attention_norm: Tensor
    wqkv: Tensor
    wo: Tensor
    ffn_norm: Tensor
    w1: Tensor
    w3: Tensor
    w2: Tensor

    @classmethod
    def of(cls, weights: dict[str, Tensor], index: int) -> LayerWeights:
        prefix = f"layers.{index}."
        return cls(
            attention_norm=weights[f"{prefix}attention_norm.weight"],
            wqkv=weights[f"{prefix}attention.wqkv.weight"],
            wo=weights[f"{prefix}attention.wo.weight"],
            ffn_norm=weights[f"{prefix}ffn_norm.weight"],
            w1=weights[f"{prefix}feed_forward.w1.weight"],
            w3=weights[f"{prefix}feed_forward.w3.weight"],
            w2=weights[f"{prefix}feed_forward.w2.weight"],
        )


def class_prefix(config: ModelConfig, weights: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The condition row of each class of `labels` [P], and of no class, conditional streams first: [2P, 1, D]."""
    table = weights["cls_embedding.embedding_table.weight"]
    return table[torch.cat([labels, torch.full_like(labels, config.num_classes)])][:, None]


def caption_prefix(weights: dict[str, Tensor], features: Tensor) -> Tensor:
    """The condition rows of captions [P, n, caption_dim], and of no caption, conditional streams first: [2P, n, D].

    Beside a caption of n rows the other stream has the last n rows of uncond_embedding (facts.md 1.9).
    """
    nothing = weights["cls_embedding.uncond_embedding"][-features.shape[1] :].expand_as(features)
    rows = torch.cat([features.to(nothing), nothing])
    hidden = F.gelu(F.linear(rows, weights["cls_embedding.cap_proj.fc1.weight"]), approximate="tanh")
    return F.linear(hidden, weights["cls_embedding.cap_proj.fc2.weight"])


class SequentialSampler:
    """Draws codes one by one for P panoramas in lock-step, two streams each.

    prefix [2P, L, D]: their embedded condition rows (`class_prefix`, `caption_prefix`).
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        prefix: Tensor,
        *,
        guidance: float = 4.0,
        top_k: int = 0,
        temperature: float = 1.0,
    ) -> None:
        self.config, self.guidance, self.top_k, self.temperature = config, guidance, top_k, temperature
        self.layers = [LayerWeights.of(weights, index) for index in range(config.num_hidden_layers)]
        self.norm, self.output = weights["norm.weight"], weights["output.weight"]
        self.codebook = weights["tok_embeddings.weight"]
        self.prefix = prefix
        self.rope = rope_table(config.grid_side, config.head_dim, config.rope_theta)
        slots = config.grid.codes + prefix.shape[1]
        shape = (config.num_hidden_layers, len(prefix), config.num_attention_heads, slots, config.head_dim)
        self.keys, self.values = prefix.new_zeros(shape), prefix.new_zeros(shape)

    @torch.inference_mode()
    def start(self, codes: Tensor) -> Tensor:
        """Begin a crop: one pass over the condition rows and its first given codes [P, k]; draws code k: [P]."""
        x = torch.cat([self.prefix, self.codebook[codes].repeat(2, 1, 1)], dim=1)
        return self._sample(self._forward(x, 0))

    @torch.inference_mode()
    def step(self, codes: Tensor, position: int) -> Tensor:
        """Feed the code [P] of grid `position`; draws the one after it: [P]."""
        return self._sample(self._forward(self.codebook[codes].repeat(2, 1)[:, None], position + self.prefix.shape[1]))

    def _forward(self, x: Tensor, slot: int) -> Tensor:
        """Embeddings x [2P, S, D] for slots slot .. slot+S-1 -> guided float32 logits [P, V] after the last."""
        count, end = x.shape[1], slot + x.shape[1]
        rope = rope_rows(self.rope, torch.arange(slot, end) - self.prefix.shape[1])  # [S, hd/2, 2]
        turns = torch.view_as_complex(rope)[:, None]
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            qkv = F.linear(self._rms_norm(x, layer.attention_norm), layer.wqkv)
            qk, v = qkv.unflatten(-1, (3, self.config.num_attention_heads, -1)).split((2, 1), dim=2)
            pairs = torch.view_as_complex(qk.float().unflatten(-1, (-1, 2)))  # [2P, S, 2, H, hd/2]
            turned = torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(x.dtype)
            q = turned[:, :, 0].transpose(1, 2)  # [2P, H, S, hd]
            keys[:, :, slot:end] = turned[:, :, 1].transpose(1, 2)
            values[:, :, slot:end] = v[:, :, 0].transpose(1, 2)
            seen = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=count > 1)
            x = x + F.linear(seen.transpose(1, 2).flatten(-2), layer.wo)
            hidden = self._rms_norm(x, layer.ffn_norm)
            x = x + F.linear(F.silu(F.linear(hidden, layer.w1)).mul_(F.linear(hidden, layer.w3)), layer.w2)
        logits = F.linear(self._rms_norm(x[:, -1], self.norm), self.output).float()
        conditional, unconditional = logits.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return (x32 * scale).to(x.dtype) * weight

    def _sample(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -math.inf)
        return logits.softmax(-1).multinomial(1)[:, 0]


def draw_panorama(sampler: SequentialSampler, columns: int, stride: int) -> Tensor:
    """Draw P panoramas one crop high and `columns` codes wide: codes [P, g, columns]."""
    side, panoramas = sampler.config.grid_side, len(sampler.prefix) // 2
    canvas = torch.full((panoramas, side, columns), -1)
    left = 0
    while True:
        crop = canvas[:, :, left : left + side].flatten(1)  # [P, N], -1 where unknown
        given = int((crop[0, :side] >= 0).sum())
        drawn = sampler.start(crop[:, :given])
        for position in range(given, side * side):
            if crop[0, position] < 0:
                crop[:, position] = drawn
            if position + 1 < side * side:
                drawn = sampler.step(crop[:, position], position)
        canvas[:, :, left : left + side] = crop.unflatten(1, (side, side))
        if left + side == columns:
            return canvas
        left = min(left + stride, columns - side)


@dataclass(frozen=True, slots=True)
class Passes:
    """What the method costs: forward passes of one panorama, and the codes they draw."""

    forwards: int
    drawn: int


def count_passes(side: int, columns: int, stride: int) -> Passes:
    """The passes that `draw_panorama` makes: N for the first crop, N - (g - c) for each further one."""
    forwards, right = side * side, side
    while right < columns:
        added = min(stride, columns - right)
        forwards += side * side - (side - added)
        right += added
    return Passes(forwards, side * columns)


def measure_step(sampler: SequentialSampler, samples: int = 24) -> float:
    """Mean seconds of one step, from `samples` single steps at places spread evenly over a crop.

    A step's cost is linear in its position (attention), so the mean over evenly spread places is the mean over all.
    """
    places = [int((index + 0.5) * sampler.config.grid.codes / samples) for index in range(samples)]
    codes = torch.zeros(len(sampler.prefix) // 2, dtype=torch.int64)
    sampler.step(codes, places[0])  # warm up
    seconds = 0.0
    for place in places:
        start = time.perf_counter()
        sampler.step(codes, place)
        seconds += time.perf_counter() - start
    return seconds / samples
