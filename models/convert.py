"""From the tensors of an upstream LlamaGen transformer to its ModelConfig (facts.md 1.1, 1.5, 1.6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import torch
import yaml
from torch import Tensor

from panoserve.checkpoint import Shapes, check_shapes, describe
from panoserve.configs.model import ModelConfig, SamplingDefaults, size_presets
from panoserve.errors import CheckpointError, ModelFolderError
from panoserve.models.reference import ReferenceModel

# Tables and caches that old files may hold and that every engine computes for itself (facts.md 1.5).
COMPUTED = re.compile(r"freqs_cis|layers\.\d+\.attention\.kv_cache\.[kv]_cache")

# Upstream's demo values (facts.md 1.8).
SAMPLING = {
    "class": SamplingDefaults(guidance=4.0, top_k=2000),
    "caption": SamplingDefaults(guidance=7.5, top_k=1000),
}

Condition = Literal["class", "caption"]


class Options(NamedTuple):
    """What the shapes of a transformer leave open. None: take it from the published file's name or size."""

    grid: int | None = None
    heads: int | None = None
    downsample: int = 16
    null_class: bool = True  # class-conditional: the last row of the class table means "no class"


@cache
def published() -> dict[str, dict[str, Any]]:
    """Published checkpoints by file name without its ending: size, condition, grid."""
    text = (resources.files("panoserve.configs") / "presets" / "published.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return table


def without_computed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without tables and caches."""
    return {key: value for key, value in state.items() if not COMPUTED.fullmatch(key)}


def recognise(state: Mapping[str, Tensor], name: str, options: Options) -> ModelConfig:
    """The configuration of the transformer whose state dict (without_computed) this is; `name` is the file's, unended.

    Every key and shape has been checked against it. Raises CheckpointError saying what the file is instead, what is
    missing, unexpected or mis-shaped, or which flag must say what the shapes do not.
    """
    condition = _condition(state)
    table = _matrix(state, "tok_embeddings.weight")
    hidden_size = table[1]
    layers = 1 + max((int(m[1]) for key in state if (m := re.match(r"layers\.(\d+)\.", key))), default=-1)
    ffn = _matrix(state, "layers.0.feed_forward.w1.weight")[0]
    size = _published_size(layers, hidden_size, ffn)
    shapes: dict[str, Any] = {
        "vocab_size": table[0],
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        **_condition_shapes(state, condition, options),
    }
    try:
        config = ModelConfig(
            condition=condition,
            downsample=options.downsample,
            grid_side=_grid(name, size, condition, options.grid),
            num_attention_heads=_heads(size, hidden_size, layers, options.heads),
            sampling=_sampling(condition, table[0], bool(shapes.get("unconditional", True))),
            **shapes,
        )
    except ModelFolderError as error:
        raise CheckpointError(f"the checkpoint's shapes do not make a transformer: {error}") from None
    check_shapes(state, expected_shapes(config), f"a whole {size or 'LlamaGen'} {condition}-conditional transformer")
    return config


def expected_shapes(config: ModelConfig) -> Shapes:
    """Key names and shapes of the transformer that `config` describes."""
    with torch.device("meta"):
        model = ReferenceModel(config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _condition(state: Mapping[str, Tensor]) -> Condition:
    looks_like = describe(state)
    if looks_like.startswith("a class-conditional LlamaGen"):
        return "class"
    if looks_like.startswith("a text-conditional LlamaGen"):
        return "caption"
    raise CheckpointError(f"expected a LlamaGen transformer, but the checkpoint looks like {looks_like}")


def _condition_shapes(state: Mapping[str, Tensor], condition: Condition, options: Options) -> dict[str, Any]:
    if condition == "class":
        rows = _matrix(state, "cls_embedding.embedding_table.weight")[0]
        return {"num_classes": rows - options.null_class, "unconditional": options.null_class}
    caption_length, caption_dim = _matrix(state, "cls_embedding.uncond_embedding")
    return {"caption_length": caption_length, "caption_dim": caption_dim}


def _matrix(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    if key not in state:
        raise CheckpointError(f"the checkpoint looks like {describe(state)}, but {key} is missing")
    if state[key].ndim != 2:
        raise CheckpointError(f"{key} has shape {tuple(state[key].shape)}, expected a matrix")
    rows, columns = state[key].shape
    return rows, columns


def _published_size(layers: int, hidden_size: int, ffn: int) -> str | None:
    for name, size in size_presets().items():
        if (size["num_hidden_layers"], size["hidden_size"], size["intermediate_size"]) == (layers, hidden_size, ffn):
            return name
    return None


def _heads(size: str | None, hidden_size: int, layers: int, asked: int | None) -> int:
    if size is None:
        if asked is None:
            raise CheckpointError(
                f"{layers} layers of width {hidden_size} are no published size, and shapes do not tell the number of "
                "attention heads: give it with --heads"
            )
        if asked < 1:
            raise CheckpointError(f"--heads is {asked}, expected at least 1")
        return asked
    heads = size_presets()[size]["num_attention_heads"]
    if asked not in (None, heads):
        raise CheckpointError(
            f"--heads is {asked}, but the checkpoint has the shapes of {size}, which has {heads} heads"
        )
    return heads


def _grid(name: str, size: str | None, condition: Condition, asked: int | None) -> int:
    if asked is not None:
        if asked < 1:
            raise CheckpointError(f"--grid is {asked}, expected at least 1")
        return asked
    known = published().get(name)
    if known is None:
        raise CheckpointError(
            f"shapes do not tell the token grid, and {name!r} is not a published file's name: give it with --grid "
            f"(16, 24 or 32 in every published model). Known names: {', '.join(published())}"
        )
    if (known["size"], known["condition"]) != (size, condition):
        raise CheckpointError(
            f"the file has the name of a published {known['condition']}-conditional {known['size']}, but holds a "
            f"{condition}-conditional {size or 'model of no published size'}: give the token grid with --grid"
        )
    return int(known["grid"])


def _sampling(condition: Condition, vocab_size: int, unconditional: bool) -> SamplingDefaults:
    """Upstream's defaults; no guidance where there is no unconditional branch, no top-k where it would cut nothing."""
    default = SAMPLING[condition]
    return SamplingDefaults(
        guidance=default.guidance if unconditional else 1.0,
        top_k=default.top_k if default.top_k < vocab_size else 0,
    )
