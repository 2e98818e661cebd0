"""Text heads: nearly all of their attention is on the text, and opening them takes little from a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoserve.configs.model import ModelConfig
from panoserve.models.reference import ReferenceModel
from panoserve.train.text_heads import LAYERS, least_used, open_text_heads
from panoserve.train.transformer import TransformerRecipe

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=128,
    num_hidden_layers=9,
    num_attention_heads=4,
    intermediate_size=256,
    grid_side=8,
    downsample=8,
    condition="caption",
    caption_dim=16,
    caption_length=6,
)


@pytest.fixture
def crops() -> tuple[ReferenceModel, Tensor, Tensor]:
    """A random model whose inputs have something in common, as trained ones do, with codes and prefixes."""
    torch.manual_seed(0)
    model = ReferenceModel(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
        model.tok_embeddings.weight.add_(torch.randn(CONFIG.hidden_size))
    return model, torch.randint(64, (5, 64)), torch.randn(5, 4, CONFIG.hidden_size)


def test_a_text_head_in_each_chosen_layer_sees_the_text(crops: tuple[ReferenceModel, Tensor, Tensor]) -> None:
    opened = open_text_heads(*crops)
    assert tuple(head.layer for head in opened) == LAYERS
    assert all(head.share > 0.8 for head in opened)  # 4 rows of text against 1 to 64 codes; 0.17 if all scored alike


def test_nothing_but_the_chosen_heads_changes(crops: tuple[ReferenceModel, Tensor, Tensor]) -> None:
    model = crops[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    opened = {head.layer: head.head for head in open_text_heads(*crops)}
    size = CONFIG.head_dim
    for name, value in model.state_dict().items():
        changed = (value != before[name]).nonzero()
        layer = int(name.split(".")[1]) if name.startswith("layers.") else None
        if layer not in opened or ".attention.w" not in name:
            assert not len(changed), name
            continue
        here = range(opened[layer] * size, (opened[layer] + 1) * size)
        if name.endswith("wo.weight"):
            assert set(changed[:, 1].tolist()) == set(here)
            assert not value[:, here.start : here.stop].any()
        else:
            dim = CONFIG.hidden_size
            assert set(changed[:, 0].tolist()) <= {part * dim + row for part in (0, 1) for row in here}


def test_the_least_used_head_is_taken(crops: tuple[ReferenceModel, Tensor, Tensor]) -> None:
    attention = crops[0].layers[0].attention
    with torch.no_grad():
        attention.wo.weight[:, 64:96] *= 0.1
    assert least_used(attention) == 2


def test_heads_are_opened_once_when_single_codes_begin() -> None:
    recipe = TransformerRecipe(steps=100, phases=((0.1, 4, 64), (0.5, 2, 32), (1.0, 1, 8)))
    assert [step for step in range(100) if recipe.begins_codes(step)] == [50]
    only_codes = TransformerRecipe(steps=10, phases=((1.0, 1, 8),))
    assert [step for step in range(10) if only_codes.begins_codes(step)] == [0]
