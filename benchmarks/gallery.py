"""Draw a picture of every kind with the embedded model, and say how visible the borders of its crops are.

    python -m panoserve.benchmarks.gallery -o docs/gallery [--pictures 8] [--photo FILE]

Of each kind several pictures are drawn, of different prompts and seeds; one is kept, and the seam ratio (seams.py)
is that of all together. README.md in the folder shows both. Takes some minutes. A photograph, by default
the one that lies in the folder, is shown with what was drawn to its left and right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from panoserve.benchmarks.intervals import bootstrap
from panoserve.benchmarks.machine import describe
from panoserve.benchmarks.seams import NEAR, Steps, seam_steps
from panoserve.cli_files import write_atomically
from panoserve.cli_model import open_folder
from panoserve.configs.grid import Grid
from panoserve.redirect.layout import plan_of
from panoserve.serve.request import PanoramaRequest

PROMPTS = (
    "a red sunset over the sea",
    "a snowy mountain range at noon",
    "green hills under a blue sky",
    "a lake among forests at dawn",
    "a desert under a clear sky",
    "a forest in autumn on a cloudy day",
    "the sea at night under the stars",
    "misty mountains at sunrise",
)

PHOTO = "photo.jpg"  # in the gallery's folder: lake-sherburne of Debian's budgie-backgrounds, CC0
PHOTO_PROMPT, PHOTO_SEED = "a mountain lake under a clear sky", 1


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of panorama: its fields of PanoramaRequest, lengths in crops, and which of its pictures is shown."""

    name: str
    caption: str
    width: float
    height: float
    shown: int
    fields: dict[str, Any]

    def request(self, grid: Grid, number: int) -> PanoramaRequest:
        def pixels(crops: float) -> int:
            return round(crops * grid.side) * grid.downsample

        request = PanoramaRequest(
            prompt=PROMPTS[number % len(PROMPTS)],
            width=pixels(self.width),
            height=pixels(self.height),
            seed=number,
        )
        return replace(request, **self.fields)


KINDS = (
    Kind("horizontal", "Six crops wide, at the default stride of three quarters of a crop", 6, 1, 0, {}),
    Kind("narrow-stride", "Six crops wide, at a stride of a third of a crop", 6, 1, 4, {"stride": 8}),
    Kind("loop", "A loop: the right edge continues at the left one", 6, 1, 3, {"loop": True}),
    Kind("vertical", "Two crops tall", 1, 2, 4, {}),
    Kind("both", "Larger than a crop both ways", 4, 1.5, 1, {}),
    Kind(
        "prompts",
        "Prompts along the panorama: noon, sunset, night, blended, at a stride of a sixth of a crop",
        6,
        1,
        0,
        {
            "stride": 4,
            "prompt": "the sea at noon",
            "prompts": [{"prompt": "the sea at sunset", "left": 0.35}, {"prompt": "the sea at night", "left": 0.7}],
            "blend": 0.33,
        },
    ),
)


Seen = dict[tuple[str, int], list[Steps]]  # of a kind's pictures, along an axis


def draw_gallery(pictures: int, photo: Path) -> tuple[dict[str, Any], Seen]:
    """The picture (PIL) of each kind that is shown, and of each kind and axis the steps of every one of its pictures.

    The photograph, a crop high, with a crop drawn on both of its sides, is the last picture.
    """
    from PIL import Image

    from panoserve import Engine
    from panoserve.serve.extend import Sides, extend_picture

    kept: dict[str, Any] = {}
    steps: Seen = {}
    with Engine(open_folder(None).path, dtype="bfloat16") as engine:
        grid = engine.config.grid
        numbered = [(kind, number) for kind in KINDS for number in range(pictures)]
        requests = [kind.request(grid, number) for kind, number in numbered]
        for (kind, number), panorama in zip(numbered, engine.generate(requests), strict=True):
            if number == kind.shown:
                kept[kind.name] = panorama.image
            plan = plan_of(panorama.request.engine_args(engine.config), grid)
            for axis in (0, 1):
                seen = seam_steps(np.asarray(panorama.image), plan, axis, panorama.request.loop)
                steps.setdefault((kind.name, axis), []).append(seen)
        side = grid.crop_pixels
        with Image.open(photo) as opened:
            picture = opened.convert("RGB").resize(
                (opened.width * side // opened.height, side), Image.Resampling.LANCZOS
            )
        request = PanoramaRequest(prompt=PHOTO_PROMPT, seed=PHOTO_SEED)
        kept["extended"] = extend_picture(engine, picture, Sides(left=side, right=side), request).image
    return kept, steps


def shown(steps: list[Steps]) -> str:
    """The four ratios of all pictures together, each with its interval over pictures."""

    ratios: tuple[Callable[[Steps], float], ...] = (
        lambda all_: all_.ratio,
        lambda all_: all_.ratio_to_codes,
        lambda all_: all_.ratio_to_near,
        lambda all_: all_.ratio_of_colours,
    )
    return " | ".join(estimated(steps, of) for of in ratios)


def estimated(steps: list[Steps], of: Callable[[Steps], float]) -> str:
    """A ratio of all pictures together, with its interval over pictures."""
    estimate = bootstrap(lambda chosen: of(sum((steps[number] for number in chosen), Steps())), len(steps))
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def page(steps: Seen, pictures: int) -> str:
    """The folder's README."""
    machine = describe()
    lines = [
        "# Gallery",
        "",
        "Pictures of the embedded model, one of each kind; written by `python -m panoserve.benchmarks.gallery`. The",
        "*seam ratio* is the mean absolute difference of neighbouring pixels across borders between crops, divided by",
        "the same everywhere else in the pictures (1 is invisible), or by the same across other borders between codes,",
        "which are rougher than the inside of a code whoever drew them, or across those of them that are at most",
        f"{NEAR} codes away, which show the like: skies are smooth, foregrounds are not. Decoders smooth what does not",
        "fit over a code or two, so the last column compares how the mean colours of neighbouring codes differ across",
        f"borders of crops and across all other borders of codes. Over {pictures} pictures of different prompts and",
        "seeds, with 95 % intervals over pictures (bootstrap): one whose bands do not fit outweighs many others.",
        f"bfloat16; {machine['isa']}; commit {machine['commit']}.",
    ]
    for axis, name in ((1, "column to column"), (0, "row to row")):
        lines += [
            "",
            f"| from {name} | over all else | over borders of codes | over those nearby | colours of codes |",
            "| --- | --- | --- | --- | --- |",
            *(f"| {k.name} | {shown(steps[k.name, axis])} |" for k in KINDS if steps[k.name, axis][0].crops.count),
        ]
    at_edge = estimated(steps["loop", 1], lambda all_: all_.ratio_at_edge)
    lines += ["", f"Colours of codes across the edge alone where loops come round: {at_edge}."]
    for kind in KINDS:
        lines += ["", f"## {kind.caption}", "", f"![{kind.caption}]({kind.name}.jpg)"]
        if "prompt" not in kind.fields:
            lines += ["", f"*{PROMPTS[kind.shown]}*"]
    lines += [
        "",
        "## A photograph, extended",
        "",
        "Its middle is the photograph ([CC0, from Debian's budgie-backgrounds](photo.jpg)),",
        f'what is to its left and right is drawn ("{PHOTO_PROMPT}"); the embedded model has never seen a photograph.',
        "",
        "![A photograph, extended](extended.jpg)",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m panoserve.benchmarks.gallery", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pictures", type=int, default=8, help="of each kind, for the seam ratio; at least 8")
    parser.add_argument("--photo", type=Path, metavar="FILE", help=f"to extend (default: {PHOTO} in DIR)")
    arguments = parser.parse_args(argv)
    if arguments.pictures < len(PROMPTS):
        parser.error(f"--pictures is {arguments.pictures}, expected {len(PROMPTS)} at least, one of every prompt")
    images, steps = draw_gallery(arguments.pictures, arguments.photo or arguments.output / PHOTO)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        write_atomically(arguments.output / f"{name}.jpg", partial(image.save, format="JPEG", quality=90))
    text = page(steps, arguments.pictures)
    write_atomically(arguments.output / "README.md", lambda file: file.write(text.encode()))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
