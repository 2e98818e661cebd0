"""Samples of a class-conditional model as the file that ADM's evaluator reads (LlamaGen's and NPP's evaluation).

    python -m panoserve.benchmarks.class_samples jobs --model DIR --images 50000 --guidance 2 -o jobs.jsonl
    panoserve batch jobs.jsonl --model DIR -o samples/            # resumable, divisible: --resume, --shard 2/8
    python -m panoserve.benchmarks.class_samples pack samples/ --size 256 -o samples.npz

Labels are uniform random numbers and every image has a seed of its own, both from --seed (facts.md 3.4). The .npz holds
`arr_0`, uint8 [N, size, size, 3]. Pictures of another size are resized as upstream does it, bicubic without
antialiasing (facts.md 2), but after they were rounded to 8 bits, where upstream resizes before.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from panoserve.cli_files import check_output, write_atomically
from panoserve.cli_model import open_folder
from panoserve.errors import InvalidRequestError, PanoserveError

MAX_SEED = 2**31


def job_lines(classes: int, images: int, seed: int, guidance: float, top_k: int, top_p: float) -> Iterator[str]:
    """One line a picture: upstream's order of names, 000000 and on."""
    rng = random.Random(seed)
    for index in range(images):
        label, own_seed = rng.randrange(classes), rng.randrange(MAX_SEED)
        job = {"id": f"{index:06d}", "label": label, "seed": own_seed, "guidance": guidance}
        yield json.dumps({**job, "temperature": 1.0, "top_k": top_k, "top_p": top_p})


def write_jobs(arguments: argparse.Namespace) -> None:
    config = open_folder(arguments.model).config
    if config.condition != "class":
        raise InvalidRequestError("this model is text-conditional; classes can be sampled from class-conditional ones")
    check_output(arguments.output, ".jsonl")
    lines = job_lines(
        config.num_classes, arguments.images, arguments.seed, arguments.guidance, arguments.top_k, arguments.top_p
    )
    write_atomically(arguments.output, lambda file: file.writelines(f"{line}\n".encode() for line in lines))


def pictures_of(folder: Path) -> list[Path]:
    """The finished pictures of a batch, by name. Raises InvalidRequestError if jobs failed or none is finished."""
    if not folder.is_dir():
        raise InvalidRequestError(f"{folder} is not a folder; expected the output of `panoserve batch`")
    failed = sorted(folder.glob("*.error.json"))
    if failed:
        raise InvalidRequestError(f"{folder} holds {len(failed)} jobs that failed, such as {failed[0].name}; draw them")
    pictures = sorted(sidecar.with_suffix(".png") for sidecar in folder.glob("*.json"))
    if not pictures:
        raise InvalidRequestError(f"{folder} holds no finished picture")
    return pictures


def resized(path: Path, size: int) -> NDArray[np.uint8]:
    """A picture as uint8 [size, size, 3]."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    if pixels.shape[:2] != (size, size):
        floats = pixels.permute(2, 0, 1)[None].float()
        floats = torch.nn.functional.interpolate(floats, size=(size, size), mode="bicubic")
        pixels = (floats[0].permute(1, 2, 0) + 0.5).clamp(0, 255).to(torch.uint8)
    return pixels.numpy()


def write_npz(pictures: Sequence[Path], size: int, file: BinaryIO) -> None:
    """What numpy.savez would write of all pictures together, holding one at a time in memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), size, size, 3)}
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as array,
    ):
        npy.write_array_header_1_0(array, header)
        for path in tqdm(pictures, unit="picture", desc="packing"):
            array.write(resized(path, size).tobytes())


def pack(arguments: argparse.Namespace) -> None:
    check_output(arguments.output, ".npz")
    pictures = pictures_of(arguments.folder)
    if arguments.images is not None and len(pictures) != arguments.images:
        raise InvalidRequestError(
            f"{arguments.folder} holds {len(pictures)} finished pictures, expected {arguments.images}; run the batch "
            "again with --resume"
        )
    write_atomically(arguments.output, lambda file: write_npz(pictures, arguments.size, file))
    print(f"{arguments.output}: {len(pictures)} pictures of {arguments.size} x {arguments.size}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.class_samples", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(required=True)
    jobs = commands.add_parser("jobs", help="write the jobs file")
    jobs.add_argument("--model", type=Path, required=True, help="a class-conditional model folder")
    jobs.add_argument("--images", type=int, default=50_000)
    jobs.add_argument("--guidance", type=float, default=2.0, help="upstream: B and L 2.0, XL and XXL 1.75, 3B 1.65")
    jobs.add_argument("--top-k", type=int, default=0, help="0 keeps all codes, as upstream's evaluation does")
    jobs.add_argument("--top-p", type=float, default=1.0)
    jobs.add_argument("--seed", type=int, default=0)
    jobs.add_argument("-o", "--output", type=Path, required=True, metavar="JOBS.jsonl")
    jobs.set_defaults(run=write_jobs)
    packing = commands.add_parser("pack", help="put the pictures of a finished batch into one file")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--size", type=int, default=256, help="side of the evaluated pictures in pixels")
    packing.add_argument("--images", type=int, help="refuse to pack any other number of pictures")
    packing.add_argument("-o", "--output", type=Path, required=True, metavar="SAMPLES.npz")
    packing.set_defaults(run=pack)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except PanoserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
