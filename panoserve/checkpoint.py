"""Checkpoint files: open them safely, say what they hold, compare, and write safetensors one tensor at a time.

Low-level, like `errors`: knows key names, but no model class. What a kind of checkpoint must hold is written in
models/convert.py and vq/convert.py.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panoserve.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

CONTAINERS = ("model", "module", "state_dict")  # in the order in which upstream's loaders look (facts.md 1.6)
EXAMPLES = 4  # how many keys an error names

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

# What a state dict looks like, by a key that no other kind has.
SIGNATURES = (
    (r"(norm|output)\.\d+\.weight", "a DnD-Transformer (several prediction heads)"),
    (r"cls_embedding\.embedding_table\.weight", "a class-conditional LlamaGen transformer"),
    (r"cls_embedding\.cap_proj\.fc1\.weight", "a text-conditional LlamaGen transformer"),
    (r"quantizer\.codebooks\.0\.weight|encoder\.down\.0\..*", "an RQ-VAE or VQGAN tokenizer (`encoder.down` naming)"),
    (r"layers\.0\.attention\.wqkv\.weight", "a LlamaGen transformer without its condition embedder"),
    (r"encoder\.conv_blocks\.0\..*", "a LlamaGen VQ tokenizer"),
    (r"(encoder|decoder)\.block\.0\.layer\.0\..*", "a T5 text encoder"),
)


def open_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, memory-mapped where the file allows it, without running any pickled code.

    Takes what torch.save or safetensors wrote; the state dict may lie under one of CONTAINERS or be the file itself.
    Raises CheckpointError: no such file, not a checkpoint, cut short, unsafe, or without a state dict.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the checkpoint file in it (FSDP training: consolidated.pth)")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    return _state_dict(content, path)


def describe(state: Mapping[str, Any]) -> str:
    """What a state dict looks like, for an error message."""
    for pattern, name in SIGNATURES:
        if any(re.fullmatch(pattern, key) for key in state):
            return name
    return f"nothing that panoserve knows; its first keys are {', '.join(sorted(state)[:EXAMPLES])}"


def check_shapes(state: Mapping[str, Tensor], expected: Shapes, what: str) -> None:
    """Raise CheckpointError, naming what differs, unless `state` has exactly the expected keys and shapes."""
    problems = [
        _problem("missing", [key for key in expected if key not in state]),
        _problem("unexpected", [key for key in state if key not in expected]),
        _problem(
            "mis-shaped",
            [
                f"{key} is {tuple(state[key].shape)}, expected {tuple(shape)}"
                for key, shape in expected.items()
                if key in state and tuple(state[key].shape) != tuple(shape)
            ],
        ),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(f"the checkpoint is not {what}: {'; '.join(found)}")


def write_safetensors(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write `state` to `path`, converted to `dtype` if given, holding one converted tensor at a time.

    Raises CheckpointError on a tensor that is not float32, float16 or bfloat16, or holds NaN or infinity.
    """
    ordered = sorted(state.items(), key=lambda item: -item[1].itemsize)  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, tensor in ordered:
        stored = dtype or tensor.dtype
        if stored not in DTYPE_NAMES or tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{key} is {tensor.dtype}, expected float32, float16 or bfloat16")
        size = tensor.numel() * stored.itemsize
        header[key] = {
            "dtype": DTYPE_NAMES[stored],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert sys.byteorder == "little", "safetensors are little-endian"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, tensor in ordered:
            converted = tensor.to(dtype or tensor.dtype).contiguous()
            if not converted.isfinite().all():
                raise CheckpointError(
                    f"{key} holds NaN or infinity; the checkpoint is damaged, or too large for {dtype}"
                )
            file.write(converted.flatten().view(torch.uint8).numpy().data)


def _load_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {_one_line(error)}") from None


def _load_torch(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # torch.save's format since 1.6; older files cannot be memory-mapped
    try:
        # A training run's file also holds its command line, an argparse.Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} holds more than weights: it wants to build a {refused[1]}, which could run any code, so it is "
                "not loaded. Only if you trust the file: load it yourself and save its state dict alone"
            ) from None
        raise CheckpointError(f"{path} is not a checkpoint that torch.save wrote: {_one_line(error)}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read; it is cut short or damaged, download it again: {_one_line(error)}"
        ) from None


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a state dict")
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            content = content[container]
            break
    others = [f"{key}: {type(value).__name__}" for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise CheckpointError(
            f"{path} holds no state dict: expected tensors by name, at the top or under one of "
            f"{', '.join(CONTAINERS)}; got {', '.join(others[:EXAMPLES]) or 'nothing'}"
        )
    return dict(content)


def _problem(kind: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f", and {len(items) - EXAMPLES} more" if len(items) > EXAMPLES else ""
    return f"{len(items)} {kind} ({', '.join(items[:EXAMPLES])}{more})"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
