"""vLLM's layers with faster CPU kernels behind them (figures in docs/log.md). On other devices they are unchanged."""

from __future__ import annotations

from torch import Tensor, nn
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

from panoserve.kernels.block import add_rms_norm, rms_norm, silu_and_mul
from panoserve.kernels.packed_linear import pack, packable, packed_linear


class FusedRMSNorm(RMSNorm):
    """RMSNorm; with a residual, adds it first and also returns the sum (both inputs are overwritten).

    vLLM 0.32's own CPU path runs a norm as eight small torch operators, which at the few rows of a decode step cost
    more than the arithmetic.
    """

    def forward_cpu(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is not None:
            return add_rms_norm(x, residual, self.weight.data, self.variance_epsilon)
        return rms_norm(x, self.weight.data, self.variance_epsilon)


class FusedSiluAndMul(SiluAndMul):
    """SwiGLU's activation in one pass."""

    def forward_cpu(self, x: Tensor) -> Tensor:
        return silu_and_mul(x)


class _Packed:
    """Keeps a layer's weight in the order of kernels/packed_linear.py where that can be, as vLLM does elsewhere.

    Mixed into the methods by which vLLM's layers hold and apply weights without quantization.
    """

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        if not packable(weight):
            super().process_weights_after_loading(layer)  # type: ignore[misc]
            return
        layer.register_buffer("packed", pack(weight.data), persistent=False)
        layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)  # the packed copy replaces it

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        packed = getattr(layer, "packed", None)
        if packed is None:
            return super().apply(layer, x, bias)  # type: ignore[misc]
        assert bias is None  # no layer of LlamaGen has one (facts.md 1.1)
        return packed_linear(x, packed)


class PackedLinearMethod(_Packed, UnquantizedLinearMethod):
    """For LinearBase."""


class PackedHeadMethod(_Packed, UnquantizedEmbeddingMethod):
    """For ParallelLMHead."""


def pack_weights_after_loading(model: nn.Module) -> None:
    """Have every unquantized linear layer of `model`, and its head, keep its weight packed."""
    for layer in model.modules():
        if isinstance(layer, LinearBase) and type(layer.quant_method) is UnquantizedLinearMethod:
            layer.quant_method = PackedLinearMethod()
        elif isinstance(layer, ParallelLMHead) and type(layer.quant_method) is UnquantizedEmbeddingMethod:
            layer.quant_method = PackedHeadMethod()
