"""Steps in which every lane has only a few new tokens go through all layers in one call (kernels/decode_layers.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention.attention import get_attention_context

from panoserve.kernels.decode_layers import DecodeLayers, Lanes, Layer, Sizes
from panoserve.models.attention import FEW_TOKENS, FewTokensAttentionImpl

if TYPE_CHECKING:
    from panoserve.models.llamagen import LlamaGenBlock


class DecodeSteps:
    """The layers of one model, as often as the step, the machine and the weights allow."""

    def __init__(self, blocks: Sequence[LlamaGenBlock]) -> None:
        self._blocks = blocks
        self.layers: DecodeLayers | None = None  # made when a step first needs it: the KV cache comes last of all

    def __call__(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the last block adds to the residual, and the residual, for x [R, D]; None if the blocks must run."""
        if x.device.type != "cpu":
            return None
        attention = self._blocks[0].attention.attn
        metadata, _, cache, slots = get_attention_context(attention.layer_name)
        if metadata is None or slots is None or metadata.max_query_len > FEW_TOKENS:
            return None
        if not isinstance(attention.impl, FewTokensAttentionImpl):
            return None
        layout = attention.impl.readable(cache, attention.isa, x.dtype)
        if layout is None:
            return None
        if self.layers is None or self.layers.layers[0].cache.data_ptr() != cache.data_ptr():
            self.layers = self._made(layout)
        if self.layers is None:
            return None
        lanes = Lanes(slots, metadata.query_start_loc, metadata.seq_lens, metadata.block_table)
        return self.layers(x, rope, lanes)

    def _made(self, layout: str) -> DecodeLayers | None:
        """The layers as the kernel wants them, if every part of them is one of ours."""
        if get_tensor_model_parallel_world_size() > 1:
            return None
        layers = []
        for block in self._blocks:
            own = block.attention
            linear = (own.wqkv, own.wo, block.w13, block.w2)
            matrices = [layer.packed for layer in linear if isinstance(getattr(layer, "packed", None), Tensor)]
            if len(matrices) < len(linear):
                return None
            wqkv, wo, w13, w2 = matrices
            norms = (block.attention_norm.weight.data, block.ffn_norm.weight.data)
            layers.append(Layer(norms[0], wqkv, wo, norms[1], w13, w2, own.attn.kv_cache))
        first = self._blocks[0]
        sizes = Sizes(
            streams=first.attention.streams,
            heads=first.attention.heads,
            head_dim=first.attention.head_dim,
            dim=first.w13.input_size,
            inner=first.w2.input_size,
            layout=layout,
            scale=first.attention.attn.impl.scale,
            epsilon=first.attention_norm.variance_epsilon,
        )
        return DecodeLayers(layers, sizes)
