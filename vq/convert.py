"""From the tensors of an upstream LlamaGen VQ tokenizer to its VQConfig (facts.md 2.1, 2.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from panoserve.checkpoint import Shapes, check_shapes, describe
from panoserve.errors import CheckpointError, ModelFolderError
from panoserve.vq.config import VQConfig
from panoserve.vq.model import VQModel

NORM_GROUPS = 32  # not visible in the shapes; the same in every upstream tokenizer


def recognise(state: Mapping[str, Tensor]) -> VQConfig:
    """The configuration of the tokenizer whose state dict this is; every key and shape has been checked against it.

    Raises CheckpointError saying what the file is instead, or what is missing, unexpected or mis-shaped.
    """
    if describe(state) != "a LlamaGen VQ tokenizer":
        raise CheckpointError(f"expected a LlamaGen VQ tokenizer, but the checkpoint looks like {describe(state)}")
    levels = _count(state, r"encoder\.conv_blocks\.(\d+)\.")
    channels = _rows(state, "encoder.conv_in.weight")
    widths = [_rows(state, f"encoder.conv_blocks.{level}.res.0.conv1.weight") for level in range(levels)]
    if any(width % channels for width in widths):
        raise CheckpointError(f"tokenizer levels of {widths} channels are not multiples of the first {channels}")
    codebook = _tensor(state, "quantize.embedding.weight")
    try:
        config = VQConfig(
            channels=channels,
            channel_multipliers=tuple(width // channels for width in widths),
            num_res_blocks=_count(state, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
            z_channels=_rows(state, "encoder.conv_out.weight"),
            codebook_size=codebook.shape[0],
            code_dim=codebook.shape[-1],
            norm_groups=NORM_GROUPS,
        )
    except ModelFolderError as error:
        raise CheckpointError(f"the checkpoint's shapes do not make a tokenizer: {error}") from None
    check_shapes(state, expected_shapes(config), f"a whole VQ-{config.downsample} tokenizer")
    return config


def expected_shapes(config: VQConfig) -> Shapes:
    """Key names and shapes of the tokenizer that `config` describes."""
    with torch.device("meta"):
        model = VQModel(config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _tensor(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise CheckpointError(f"the checkpoint looks like a LlamaGen VQ tokenizer, but {key} is missing")
    return state[key]


def _rows(state: Mapping[str, Tensor], key: str) -> int:
    return _tensor(state, key).shape[0]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number in the keys that start with `pattern`."""
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)
