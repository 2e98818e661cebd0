"""LlamaGen as a vLLM model: the fast twin of models/reference.py.

Both guidance streams of a request run inside one vLLM token (design.md 3): a batch of N tokens is [N, 2, D] here, the
linear layers see 2N rows, and attention sees twice the heads, so that a pair of streams shares one block table and can
never fall out of step. Streams are written S below: 2, or 1 without guidance.

Positions are grid indices; negative ones are condition rows (see LlamaGenConfig). Input ids are codes, except at
condition rows, where they are class labels (class-conditional) or placeholders (captions).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.utils import maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.sequence import IntermediateTensors

from panoserve.configs.model import ModelConfig
from panoserve.kernels.block import rope_split
from panoserve.models.attention import attention_backend
from panoserve.models.caption import CaptionDummyInputs, CaptionInfo, CaptionProcessor
from panoserve.models.decode_steps import DecodeSteps
from panoserve.models.guidance import guidance_table
from panoserve.models.hf_config import LlamaGenConfig
from panoserve.models.layers import FusedRMSNorm, FusedSiluAndMul, pack_weights_after_loading
from panoserve.models.reference import CaptionProjection, rope_rows, rope_table


class LlamaGenAttention(nn.Module):
    """Fused projection, two-dimensional RoPE, paged attention over all streams at once."""

    def __init__(self, config: LlamaGenConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        shape = config.shape
        self.streams = config.streams
        self.head_dim = config.head_dim  # padded
        self.heads = shape.num_attention_heads // get_tensor_model_parallel_world_size()  # of one stream, on this rank
        self.wqkv = QKVParallelLinear(
            shape.hidden_size,
            self.head_dim,
            shape.num_attention_heads,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.wqkv",
        )
        self.wo = RowParallelLinear(
            shape.num_attention_heads * self.head_dim,
            shape.hidden_size,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.wo",
        )
        self.attn = Attention(
            self.streams * self.heads,
            self.head_dim,
            scale=shape.head_dim**-0.5,  # of the true head, not the padded one (facts.md 3.5)
            num_kv_heads=self.streams * self.heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.attn",
            attn_backend=attention_backend(),
        )

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """x [S * N, D], rows of one token adjacent; rope complex64 [N, hd/2]."""
        qkv, _ = self.wqkv(x)
        q, k, v = rope_split(qkv.view(-1, self.streams, 3 * self.heads, self.head_dim), rope)
        out = self.attn(q, k, v)
        return self.wo(out.view(-1, self.heads * self.head_dim))[0]


class LlamaGenBlock(nn.Module):
    """One pre-norm block; the residual is carried separately so that adding and normalising is one kernel."""

    def __init__(self, config: LlamaGenConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        shape = config.shape
        self.attention = LlamaGenAttention(config, vllm_config, f"{prefix}.attention")
        self.w13 = MergedColumnParallelLinear(
            shape.hidden_size,
            [shape.intermediate_size] * 2,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.w13",
        )
        self.w2 = RowParallelLinear(
            shape.intermediate_size,
            shape.hidden_size,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.w2",
        )
        self.act = FusedSiluAndMul()
        self.attention_norm = FusedRMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.ffn_norm = FusedRMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, x: Tensor, residual: Tensor | None, rope: Tensor) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = x
            x = self.attention_norm(x)
        else:
            x, residual = self.attention_norm(x, residual)
        x, residual = self.ffn_norm(self.attention(x, rope), residual)
        return self.w2(self.act(self.w13(x)[0]))[0], residual


class LlamaGenForImageGeneration(nn.Module, SupportsMRoPE):
    """Class-conditional LlamaGen (NPP's checkpoints are the same model)."""

    cls_embedding: Any  # an nn.Embedding here, a CaptionProjectionWithUncond in the subclass

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        assert isinstance(config, LlamaGenConfig)
        shape = config.shape
        self.shape: ModelConfig = shape
        self.streams: int = config.streams
        self.head_padding: int = config.head_dim - shape.head_dim
        self.guidance = guidance_table(vllm_config, vllm_config.device_config.device)
        self.tok_embeddings = VocabParallelEmbedding(shape.vocab_size, shape.hidden_size)
        self.add_condition(shape)
        blocks = [
            LlamaGenBlock(config, vllm_config, maybe_prefix(prefix, f"layers.{index}"))
            for index in range(shape.num_hidden_layers)
        ]
        self.layers = nn.ModuleList(blocks)
        self.decode_steps = DecodeSteps(blocks)
        self.norm = FusedRMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.output = ParallelLMHead(shape.vocab_size, shape.hidden_size, prefix=maybe_prefix(prefix, "output"))
        self.logits_processor = LogitsProcessor(shape.vocab_size)
        pack_weights_after_loading(self)
        # A float32 table that `.to(bfloat16)` must not touch (facts.md 1.3), hence not a buffer of the module's dtype.
        table = rope_table(shape.grid_side, shape.head_dim, shape.rope_theta)
        self.rope = torch.view_as_complex(table).to(vllm_config.device_config.device)

    def add_condition(self, shape: ModelConfig) -> None:
        self.cls_embedding = nn.Embedding(shape.num_classes + shape.unconditional, shape.hidden_size)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Grid positions of a prompt: condition rows are -L .. -1; vLLM keeps three identical rows."""
        rows = self.condition_rows(mm_features)
        positions = torch.arange(len(input_tokens)) - rows
        return positions.expand(3, -1), -rows

    def condition_rows(self, mm_features: list[MultiModalFeatureSpec]) -> int:
        return 1

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.tok_embeddings(input_ids)

    def embed_streams(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, positions: Tensor) -> Tensor:
        """The input of both streams: [N, S, D]. They differ at condition rows only."""
        assert input_ids is not None
        label_row = (positions < 0)[:, None]
        codes = self.tok_embeddings(torch.where(positions < 0, 0, input_ids))
        labels = self.cls_embedding(torch.where(positions < 0, input_ids, 0))
        streams = [torch.where(label_row, labels, codes)]
        if self.streams == 2:
            streams.append(torch.where(label_row, self.cls_embedding.weight[self.shape.num_classes], codes))
        return torch.stack(streams, dim=1)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of both streams, side by side: [N, S * D]. positions [3, N]."""
        positions = positions[0]
        x = self.embed_streams(input_ids, inputs_embeds, positions).flatten(0, 1)  # [N * S, D]
        rope = rope_rows(self.rope, positions)  # [N, hd/2]
        if (made := self.decode_steps(x, rope)) is not None:
            x, residual = made
        else:
            residual = None
            for layer in self.layers:
                x, residual = layer(x, residual, rope)
        x, _ = self.norm(x, residual)
        return x.view(len(positions), -1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Guided logits [R, V] float32 of R rows of hidden states [R, S * D]."""
        rows = hidden_states.view(len(hidden_states) * self.streams, -1)
        logits = self.logits_processor(self.output, rows)
        if logits is None:  # not the rank that samples
            return None
        logits = logits.float()
        if self.streams == 1:
            return logits
        pairs = logits.view(-1, 2, logits.shape[-1])
        return self.guidance.mix(pairs[:, 0], pairs[:, 1])

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load upstream's key names (facts.md 1.5), fusing w1 with w3 and padding odd head sizes."""
        parameters = dict(self.named_parameters())
        loaded = set()
        for source, name, shard, tensor in self.placed(weights):
            if name not in parameters:
                raise ValueError(f"{source} is not a weight of this model; convert the checkpoint again")
            parameter = parameters[name]
            load = getattr(parameter, "weight_loader", default_weight_loader)
            if shard is None:
                load(parameter, tensor)
            else:
                load(parameter, tensor, shard)
            loaded.add(name)
        return loaded

    def placed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, str, str | int | None, Tensor]]:
        """(upstream name, our parameter, its shard, tensor) for every tensor of a checkpoint."""
        for name, tensor in weights:
            if name.endswith("attention.wqkv.weight"):
                for shard, part in zip("qkv", tensor.chunk(3), strict=True):
                    yield name, name, shard, self.pad_heads(part)
            elif name.endswith("attention.wo.weight"):
                yield name, name, None, self.pad_heads(tensor.T).T
            elif "feed_forward.w1." in name or "feed_forward.w3." in name:
                target = name.replace("feed_forward.w1.", "w13.").replace("feed_forward.w3.", "w13.")
                yield name, target, 0 if ".w1." in name else 1, tensor
            elif name.startswith("cls_embedding.embedding_table."):
                yield name, name.replace(".embedding_table", ""), None, tensor
            else:
                yield name, name.replace("feed_forward.", ""), None, tensor

    def pad_heads(self, rows: Tensor) -> Tensor:
        """Zero-pad every head of a [H * hd, D] matrix to the head size that the attention kernels take."""
        if self.head_padding == 0:
            return rows
        heads = rows.unflatten(0, (self.shape.num_attention_heads, self.shape.head_dim))
        return nn.functional.pad(heads, (0, 0, 0, self.head_padding)).flatten(0, 1)


@MULTIMODAL_REGISTRY.register_processor(CaptionProcessor, info=CaptionInfo, dummy_inputs=CaptionDummyInputs)
class LlamaGenForTextToImage(LlamaGenForImageGeneration, SupportsMultiModal):
    """Caption-conditional LlamaGen: caption features enter as a multimodal input (design.md 3)."""

    def add_condition(self, shape: ModelConfig) -> None:
        self.cls_embedding = CaptionProjectionWithUncond(shape)

    def condition_rows(self, mm_features: list[MultiModalFeatureSpec]) -> int:
        return sum(feature.mm_position.length for feature in mm_features)

    def embed_multimodal(self, **kwargs: object) -> list[Tensor]:
        """The condition rows of both streams, side by side, of every caption (models/caption.py): [n, S * D]."""
        captions = kwargs.get("caption")
        if captions is None:
            return []
        assert isinstance(captions, torch.Tensor | list | tuple)
        return [self.cls_embedding(features, self.streams).flatten(1) for features in captions]

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: list[Tensor] | tuple[Tensor, ...] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        embedded = self.tok_embeddings(input_ids).repeat(1, self.streams)  # [N, S * D]: codes are the same in both
        if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
            embedded[is_multimodal] = torch.cat(list(multimodal_embeddings)).to(embedded)
        return embedded

    def embed_streams(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, positions: Tensor) -> Tensor:
        assert inputs_embeds is not None
        return inputs_embeds.unflatten(1, (self.streams, -1))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded = super().load_weights(weights)
        self.cls_embedding.project_unconditional()
        return loaded


class CaptionProjectionWithUncond(nn.Module):
    """The caption MLP, and the unconditional rows already sent through it."""

    uncond_projected: Tensor

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.caption_dim = shape.caption_dim
        self.cap_proj = CaptionProjection(shape)
        self.uncond_embedding = nn.Parameter(torch.zeros(shape.caption_length, shape.caption_dim), requires_grad=False)
        self.register_buffer("uncond_projected", torch.zeros(shape.caption_length, shape.hidden_size), persistent=False)

    def project_unconditional(self) -> None:
        self.uncond_projected.copy_(self.cap_proj(self.uncond_embedding))

    def forward(self, features: Tensor, streams: int) -> Tensor:
        """The streams' condition rows [n, S, D] of features [n, caption_dim], or [n, 2 * caption_dim] with a negative.

        The unconditional stream of a caption of n rows has the *last* n rows of uncond_embedding (facts.md 1.9).
        """
        given = features.to(self.cap_proj.fc1.weight).unflatten(1, (-1, self.caption_dim))  # [n, 1 or 2, caption_dim]
        rows = self.cap_proj(given)[:, :streams]
        if rows.shape[1] == streams:
            return rows
        return torch.cat([rows, self.uncond_projected[-len(rows) :, None]], dim=1)
