"""LlamaGen in plain PyTorch: short, slow, and the specification of everything faster.

Key names are upstream's (facts.md 1.5), so a checkpoint's tensors load without renaming. `models/llamagen.py` computes
the same function on vLLM's paged cache; `train/` trains this class.

Shapes: B pictures, S codes, T condition rows, D = hidden_size, H heads of hd dims, N = g * g codes in a crop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoserve.configs.model import ModelConfig
from panoserve.kernels.vector_math import settle_vector_math


def rope_table(side: int, head_dim: int, theta: float = 10000.0) -> Tensor:
    """(cos, sin) of every grid position, and zeros for condition rows: float32 [N + 1, hd/2, 2].

    The first half of the pairs turns with the row, the second half with the column. The last entry, reached by any
    negative position, is (0, 0): a condition row's query and key are multiplied by zero, which is *not* the identity
    rotation (facts.md 1.3).
    """
    settle_vector_math()
    half = head_dim // 2
    frequencies = theta ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)  # [hd/4]
    steps = torch.outer(torch.arange(side, dtype=torch.float32), frequencies)  # [g, hd/4]
    rows = steps[:, None, :].expand(side, side, -1)
    columns = steps[None, :, :].expand(side, side, -1)
    angles = torch.cat([rows, columns], dim=-1).reshape(side * side, half)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([table, torch.zeros(1, half, 2)])


def rope_rows(table: Tensor, positions: Tensor) -> Tensor:
    """The table's rows for `positions` (negative: condition row): [..., hd/2, 2]."""
    return table[torch.where(positions < 0, table.shape[0] - 1, positions)]


def rotate(x: Tensor, rows: Tensor) -> Tensor:
    """Turn the interleaved pairs (2p, 2p+1) of x [..., S, H, hd] by rows [S, hd/2, 2], in float32; x's dtype out."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin = rows[..., None, :, 0], rows[..., None, :, 1]
    turned = torch.stack(
        [pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin],
        dim=-1,
    )
    return turned.flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """Statistics in float32, the weight applied in the model's dtype (facts.md 1.2)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class LayerCache:
    """Keys (rotated) and values of one layer for the slots filled so far: [B, slots, H, hd] each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        else:
            self.keys = torch.cat([self.keys, keys], dim=1)
            self.values = torch.cat([self.values, values], dim=1)
        return self.keys, self.values


class Attention(nn.Module):
    """Multi-head attention with one fused projection and two-dimensional RoPE."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        """x [B, S, D]; rope [S, hd/2, 2]; mask bool [B or 1, 1, S, slots], or None for plain causal attention."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.wqkv(x).chunk(3, dim=-1))
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.append(k, v)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.wo(out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm residual block; dropout on both branches in training only."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rope, mask, cache))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class LabelEmbedder(nn.Module):
    """One row per class, and one more for "no class" where the model has guidance (facts.md 1.4)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + config.unconditional, config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        """labels [B] -> [B, 1, D]."""
        return self.embedding_table(labels)[:, None]


class CaptionProjection(nn.Module):
    """fc2(gelu_tanh(fc1(features))), without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.hidden_size, bias=False)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Projects caption features; `uncond_embedding` is a frozen random matrix, not a parameter (facts.md 1.4)."""

    uncond_embedding: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config)
        uncond = torch.randn(config.caption_length, config.caption_dim) / config.caption_dim**0.5
        self.register_buffer("uncond_embedding", uncond)

    def forward(self, features: Tensor) -> Tensor:
        """features [B, T, caption_dim] -> [B, T, D]."""
        return self.cap_proj(features)

    def unconditional(self, rows: int) -> Tensor:
        """The unconditional stream beside a caption of `rows` rows: the *last* rows (facts.md 1.9): [1, rows, D]."""
        return self.cap_proj(self.uncond_embedding[-rows:])[None]

    def negative(self, features: Tensor, rows: int) -> Tensor:
        """The same beside a negative caption [m, caption_dim]: it is stretched or condensed to `rows`: [1, rows, D].

        Row i is the mean of all rows that lie, in part or whole, between i m / rows and (i + 1) m / rows. Left padding
        would need a mask of its own for this stream, which shares its cache with the other one (design.md 3); unmasked
        zeros are worse than any other way of filling up (docs/log.md).
        """
        count = len(features)
        fitted = [features[i * count // rows : -(-(i + 1) * count // rows)].mean(0) for i in range(rows)]
        return self.cap_proj(torch.stack(fitted))[None]


class ReferenceModel(nn.Module):
    """The transformer: condition rows, then codes in raster order; logits for the next code at every place."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = LabelEmbedder(config) if config.condition == "class" else CaptionEmbedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.token_dropout = nn.Dropout(dropout)
        self.rope = rope_table(config.grid_side, config.head_dim, config.rope_theta)

    def init_weights(self) -> None:
        """Upstream's initialisation: N(0, 0.02) everywhere, norms one, the output layer zero (facts.md 1.12)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.output.weight)

    def blocks(
        self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: list[LayerCache] | None = None
    ) -> Tensor:
        """Run embeddings x [B, S, D] at grid `positions` [S] through all layers; logits float32 [B, S, V]."""
        rope = rope_rows(self.rope.to(x.device), positions)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, None if cache is None else cache[index])
        return self.output(self.norm(x)).float()

    def forward(self, codes: Tensor, prefix: Tensor, valid: Tensor | None = None) -> Tensor:
        """Teacher forcing: logits [B, S + 1, V], entry j predicting code j (facts.md 1.13).

        codes [B, S] are codes 0 .. S-1; prefix [B, T, D] are embedded condition rows; valid [B, T] says which of them
        count, the others being left padding (facts.md 1.9), or None if all do.
        """
        rows = prefix.shape[1]
        length = rows + codes.shape[1]
        x = self.token_dropout(torch.cat([prefix, self.tok_embeddings(codes).to(prefix.dtype)], dim=1))
        positions = torch.arange(length, device=x.device) - rows
        mask = None
        if valid is not None:
            key_counts = F.pad(valid.bool(), (0, codes.shape[1]), value=True)
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            itself = torch.eye(length, dtype=torch.bool, device=x.device)
            mask = ((causal & key_counts[:, None, :]) | itself)[:, None]  # [B, 1, L, L]
        return self.blocks(x, positions, mask)[:, rows - 1 :]


class ReferenceLane:
    """One crop being drawn, with its own key-value cache: the readable twin of a vLLM lane.

    Two streams (conditional, unconditional) when `guided`, else one; both are fed the same codes. Slots are sequence
    positions: slot s holds grid position s - T for a prefix of T rows.
    """

    def __init__(self, model: ReferenceModel, prefix: Tensor) -> None:
        """prefix [streams, T, D]: the embedded condition rows of each stream."""
        self.model = model
        self.prefix = prefix
        self.cache = [LayerCache() for _ in model.layers]

    @property
    def filled(self) -> int:
        keys = self.cache[0].keys
        return 0 if keys is None else keys.shape[1]

    def feed(self, codes: list[int]) -> Tensor:
        """Feed `codes` behind what is cached (the prefix first, if nothing is); logits after the last: [streams, V]."""
        embedded = self.model.tok_embeddings(torch.tensor(codes, dtype=torch.long)).to(self.prefix.dtype)
        x = embedded[None].expand(len(self.prefix), -1, -1)
        past = self.filled
        if past == 0:
            x = torch.cat([self.prefix, x], dim=1)
        slots = torch.arange(past, past + x.shape[1])
        mask = torch.arange(past + x.shape[1])[None] <= slots[:, None]  # causal over everything cached
        return self.model.blocks(x, slots - self.prefix.shape[1], mask[None, None], self.cache)[:, -1]

    def copy(self, parent: ReferenceLane, slots: list[int], rows: int, columns: int) -> None:
        """Append `parent`'s keys and values of `slots`; keys turn by a shift of (rows, columns) on the grid.

        Condition rows (slots before the grid) are copied as they are. Values keep what the code saw in its first
        crop: that is what context `reuse` means (facts.md 7.3).
        """
        side, prefix_rows = self.model.config.grid_side, parent.prefix.shape[1]
        table = self.model.rope
        shift = torch.stack([self._turn(table, side, rows, columns, slot < prefix_rows) for slot in slots])
        for own, other in zip(self.cache, parent.cache, strict=True):
            assert other.keys is not None and other.values is not None
            own.append(rotate(other.keys[:, slots], shift), other.values[:, slots])

    @staticmethod
    def _turn(table: Tensor, side: int, rows: int, columns: int, prefix: bool) -> Tensor:
        """(cos, sin) [hd/2, 2] of the turn that moves a key by (rows, columns); the identity for a condition row."""
        half = table.shape[1] // 2  # pairs that turn with the row; the other half turns with the column
        if prefix:
            rows = columns = 0
        row_turn, column_turn = table[abs(rows) * side, :half], table[abs(columns), half:]
        backwards = torch.tensor([1.0, -1.0])
        if rows < 0:
            row_turn = row_turn * backwards
        if columns < 0:
            column_turn = column_turn * backwards
        return torch.cat([row_turn, column_turn])
