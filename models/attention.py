"""vLLM's CPU attention with faster kernels, above all for steps in which every lane has only a few new tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl, CPUAttentionMetadata

from panoserve.kernels.decode_attention import decode_attention, readable_layout, write_cache

if TYPE_CHECKING:
    from vllm.v1.attention.backend import AttentionBackend

# New tokens of a lane up to which reading its cache once for each of them beats vLLM's operator, which shares the
# reading among them. In `reuse` a lane has one, or two at the start of a row.
FEW_TOKENS = 4


class FewTokensAttentionImpl(CPUAttentionBackendImpl):
    """Sends such steps to kernels/decode_attention.py and everything else to vLLM."""

    def readable(self, kv_cache: Tensor, isa: str, dtype: torch.dtype) -> str | None:
        """As `readable_layout`. The bytes of a cache do not say which of the two FP8 formats they are in."""
        return None if "e5m2" in self.kv_cache_dtype else readable_layout(kv_cache, isa, dtype)

    def forward(  # type: ignore[override]
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """As CPUAttentionBackendImpl.forward; the cache holds the new keys and values already."""
        layout = self.readable(kv_cache, layer.isa, query.dtype)
        if layout is None or attn_metadata is None or attn_metadata.max_query_len > FEW_TOKENS:
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
        tokens = attn_metadata.num_actual_tokens
        decode_attention(
            query[:tokens],
            kv_cache,
            layout,
            attn_metadata.query_start_loc,
            attn_metadata.seq_lens,
            attn_metadata.block_table,
            self.scale,
            output[:tokens],
        )
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """As CPUAttentionBackendImpl.do_kv_cache_update."""
        layout = self.readable(kv_cache, layer.isa, key.dtype)
        if layout is None:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        else:
            write_cache(key, value, kv_cache, layout, slot_mapping)


class FewTokensAttentionBackend(CPUAttentionBackend):
    """vLLM's CPU backend in everything but the implementation."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return FewTokensAttentionImpl


def attention_backend() -> type[AttentionBackend] | None:
    """What LlamaGen's attention layers ask vLLM for: None is vLLM's own choice."""
    return FewTokensAttentionBackend if current_platform.is_cpu() else None
