"""Upstream LlamaGen checkpoints to model folders (docs/checkpoints.md).

convert_llamagen(
    checkpoint,             the transformer's file
    out_dir,                the model folder to make; refused if it holds anything, unless overwrite=True
    vq=None,                the tokenizer's file; without it the folder serves codes only
    text_encoder=None,      a folder with a transformers T5 encoder; without it, captions come in as features
    grid=None,              token grid side; None: from the published file's name
    heads=None,             attention heads; None: from the published size that has these shapes
    downsample=None,        pixels a code; None: the tokenizer's, or 16
    null_class=True,        class-conditional: whether the class table's last row means "no class"
    dtype=None,             "float32", "float16", "bfloat16" for the transformer; None: as in the file
    overwrite=False,        replace a model folder that is there
) -> ModelConfig            raises CheckpointError; then nothing has been written
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from panoserve.checkpoint import open_checkpoint, write_safetensors
from panoserve.configs.model import MODEL_TYPE, ModelConfig
from panoserve.errors import CheckpointError
from panoserve.models import convert as transformer
from panoserve.vq import convert as tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FOREIGN_WEIGHTS = (".h5", ".msgpack", ".ot", ".onnx", ".gguf")  # of other frameworks, beside a published T5


def convert_llamagen(
    checkpoint: Path | str,
    out_dir: Path | str,
    *,
    vq: Path | str | None = None,
    text_encoder: Path | str | None = None,
    grid: int | None = None,
    heads: int | None = None,
    downsample: int | None = None,
    null_class: bool = True,
    dtype: str | None = None,
    overwrite: bool = False,
) -> ModelConfig:
    """Make a model folder; see the top of this file. Everything is checked before the first byte is written."""
    checkpoint, out_dir = Path(checkpoint), Path(os.path.abspath(out_dir))
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    _check_destination(out_dir, overwrite)

    vq_state = None if vq is None else open_checkpoint(vq)
    vq_config = None if vq_state is None else tokenizer.recognise(vq_state)
    if vq_config is not None and downsample not in (None, vq_config.downsample):
        raise CheckpointError(f"downsample is {downsample}, but the tokenizer's is {vq_config.downsample}")
    if vq_config is not None:
        downsample = vq_config.downsample

    state = transformer.without_computed(open_checkpoint(checkpoint))
    options = transformer.Options(grid, heads, 16 if downsample is None else downsample, null_class)
    config = transformer.recognise(state, checkpoint.stem, options)
    if vq_config is not None and vq_config.codebook_size != config.vocab_size:
        raise CheckpointError(
            f"the transformer draws {config.vocab_size} codes, but the tokenizer has {vq_config.codebook_size}: "
            "they do not belong together"
        )
    encoder_files = [] if text_encoder is None else _text_encoder_files(Path(text_encoder), config)

    part = out_dir.with_name(f".{out_dir.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        _write_json(part / "config.json", config.to_dict())
        write_safetensors(part / "model.safetensors", state, DTYPES[dtype] if dtype else None)
        if vq_config is not None and vq_state is not None:
            (part / "vq").mkdir()
            _write_json(part / "vq" / "config.json", vq_config.to_dict())
            write_safetensors(part / "vq" / "model.safetensors", vq_state)
        if encoder_files:
            (part / "text_encoder").mkdir()
            for file in encoder_files:
                _link_or_copy(file, part / "text_encoder" / file.name)
        _move_into_place(part, out_dir)
    except OSError as error:
        raise CheckpointError(f"cannot write {out_dir}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return config


def _check_destination(out_dir: Path, overwrite: bool) -> None:
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return
    if not out_dir.is_dir():
        raise CheckpointError(f"{out_dir} is a file; expected the name of a folder to make")
    if not overwrite:
        raise CheckpointError(f"{out_dir} is not empty; name another folder, or remove it first")
    if not _is_model_folder(out_dir):
        raise CheckpointError(
            f"{out_dir} is not empty and no model folder, so it is not overwritten; remove it yourself"
        )


def _is_model_folder(folder: Path) -> bool:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == MODEL_TYPE


def _text_encoder_files(folder: Path, config: ModelConfig) -> list[Path]:
    """The files of a T5 encoder that belong into a model folder; raises CheckpointError unless it fits the model."""
    if config.condition != "caption":
        raise CheckpointError(
            "a text encoder was given, but the transformer is class-conditional and reads no captions"
        )
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type, width = values["model_type"], values["d_model"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder} is not the folder of a T5 encoder: no config.json with model_type and d_model"
        ) from None
    if model_type != "t5":
        raise CheckpointError(f"the text encoder in {folder} is a {model_type!r} model, expected 't5'")
    if width != config.caption_dim:
        raise CheckpointError(
            f"the text encoder in {folder} gives {width} features a token, but the transformer reads "
            f"{config.caption_dim}"
        )
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in files if file.suffix not in FOREIGN_WEIGHTS]
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if ".bin" not in file.suffixes]
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise CheckpointError(f"{folder} holds no weights (*.safetensors or *.bin)")
    if not any(file.name in ("tokenizer.json", "spiece.model") for file in files):
        raise CheckpointError(f"{folder} holds no tokenizer (tokenizer.json or spiece.model)")
    return files


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it: published text encoders are several gigabytes."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _move_into_place(part: Path, out_dir: Path) -> None:
    """Give the finished folder its name; what stood there goes only once the new one is ready."""
    if out_dir.exists() and any(out_dir.iterdir()):
        old = part.with_name(f"{part.name}.old")
        os.replace(out_dir, old)
        os.replace(part, out_dir)
        shutil.rmtree(old)
    else:
        os.replace(part, out_dir)


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
