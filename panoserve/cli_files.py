"""Files of the command line: features in, results out (checked first, written whole), and fingerprints of both."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from panoserve.errors import InvalidRequestError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PIECE = 64 * 1024
PIECES = 16
LONGEST_NAME = 255  # bytes, on every usual file system
TEMPORARY = 10  # bytes that a temporary file's name has more than its file's


def load_features(path: Path) -> torch.Tensor:
    """Caption features [n, caption_dim] from a .npy or .safetensors file. Raises InvalidRequestError."""
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in (".npy", ".safetensors"):
        raise InvalidRequestError(f"features file {path} must end in .npy or .safetensors", "features")
    if not path.is_file():
        raise InvalidRequestError(f"features file {path} does not exist", "features")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:  # np.load would also take archives and pickles
                return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False).astype(np.float32))
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidRequestError(f"features file {path} cannot be read: {error}", "features") from None
    if len(tensors) != 1:
        raise InvalidRequestError(
            f"features file {path} holds {len(tensors)} tensors ({', '.join(sorted(tensors))}), "
            "expected one of shape [n, caption_dim]",
            "features",
        )
    return next(iter(tensors.values())).float()


def load_picture(path: Path) -> Image:
    """A picture as RGB, turned as its EXIF says. Raises InvalidRequestError if it cannot be taken."""
    from panoserve.vq.images import read_picture

    picture = read_picture(path, f"picture {path}")
    if picture.mode == "RGBA":
        raise InvalidRequestError(f"picture {path} is transparent in places; flatten it first")
    return picture


def check_output(path: Path, suffix: str) -> None:
    """Raise InvalidRequestError unless `path` can be written: its name, and the nearest folder that exists."""
    if path.suffix.lower() != suffix:
        raise InvalidRequestError(f"output {path} must end in {suffix}")
    if path.is_dir():
        raise InvalidRequestError(f"output {path} is a folder, expected the name of a file to write")
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise InvalidRequestError(
            f"output {path} cannot be written: {ancestor} is not a folder that this user may write to"
        )


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a temporary file beside `path`, then rename: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    room = len(os.fsencode(path.name)) + TEMPORARY <= LONGEST_NAME
    temporary = path.with_name(f".{path.name if room else 'panoserve'}.{secrets.token_hex(4)}")
    # Not tempfile's, which makes private files: nobody can read the umask without setting it for all threads.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_codes(codes: torch.Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the codes [rows, columns] as the one tensor `codes` of a .safetensors file."""
    from safetensors.torch import save

    content = save({"codes": codes.contiguous()}, metadata=dict(metadata))
    write_atomically(path, lambda file: file.write(content))


def fingerprint_files(paths: list[Path]) -> str:
    """Twelve hex digits of SHA-256 over each file's size and up to 16 evenly spaced pieces of 64 KiB.

    A sample, so that a checkpoint of many GB costs milliseconds: it tells models apart, it is no proof of integrity.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            if size <= PIECE * PIECES:
                digest.update(file.read())
                continue
            for piece in range(PIECES):
                file.seek(piece * (size - PIECE) // (PIECES - 1))
                digest.update(file.read(PIECE))
    return digest.hexdigest()[:12]


def fingerprint_model(folder: Path) -> str:
    """Fingerprint of a model folder: every config and weight file in it, the tokenizer's files included."""
    suffixes = {".json", ".safetensors", ".model"}
    return fingerprint_files(sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in suffixes))


def load_prompts(path: Path) -> Any:
    """A YAML file with prompts along the panorama, as it stands. Raises InvalidRequestError."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidRequestError(f"prompts file {path} does not exist", "prompts") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidRequestError(f"prompts file {path} cannot be read: {' '.join(str(error).split())}") from None
