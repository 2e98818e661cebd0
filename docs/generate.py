"""Write the parts of docs/ that repeat what the code says: cli.md, the file map of architecture.md, the figures.

    python docs/generate.py            (make docs)

tests/test_docs.py fails when a page is no longer what this makes of the code.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from panoserve.cli import build_parser
from panoserve.cli_record import PREFIX, DrawRecord
from panoserve.configs.grid import Canvas, Grid
from panoserve.redirect.layout import canvas_plan, crop_windows
from panoserve.redirect.picture import plan_svg
from panoserve.redirect.plan import Draw
from panoserve.redirect.simulate import predict
from panoserve.serve.two_pass import HOLD, given_shares

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- files: made by `make docs` -->\n", "<!-- end of files -->\n"

FOLDERS = {
    "panoserve": "the front door: version, errors, plug-in, command line",
    "configs": "shared vocabulary as values; imports nothing of ours but the errors",
    "kernels": "operations on the KV cache, each with a readable twin",
    "vq": "pictures to codes and back",
    "models": "transformers and what conditions them",
    "redirect": "panoramas out of crops: plan, scheduler, KV connector, simulator",
    "serve": "the engine and its requests",
    "train": "the embedded model: scenes, tokenizer, text encoder, transformer",
    "benchmarks": "measurements",
}

CLI_OPENING = """# The command line

Made from the program itself by `make docs`; edit panoserve/cli.py, not this page.

Results go to stdout, everything else (progress, warnings, errors) to stderr. An error is one line that starts with
`panoserve: error:`. What is wrong with a request is said before anything is written.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the engine failed, or `doctor` found a problem |
| 2 | the request, a file or the installation is not right; the line says what was got, what was expected, what to do |
| 130 | interrupted |
"""

CHUNKS = """## What a picture says about itself

`generate`, `extend` and `redraw` write these text chunks into their PNG, each value as JSON; `replay` reads them back.
`Software` names the program. The model is its folder's name and a fingerprint of its content; only `features`, if used,
is a path, as it was given.
"""


def subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command that can be run, depth first."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from subcommands(child)


def command_section(parser: argparse.ArgumentParser) -> str:
    """One command: usage, what it does, a table of its arguments."""
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    usage = parser.format_usage().removeprefix("usage: ").strip()
    rows = ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
        if action.option_strings and action.nargs != 0:
            metavar = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
            names += f" `{metavar or ' | '.join(action.choices or [action.dest.upper()])}`".replace("|", "\\|")
        rows.append(f"| {names} | {(action.help or '').replace('%%', '%')} |")
    return f"## {parser.prog}\n\n{parser.description}\n\n```text\n{usage}\n```\n\n" + "\n".join(rows) + "\n"


def cli_page() -> str:
    sections = [command_section(parser) for parser in subcommands(build_parser())]
    rows = [
        f"| `{PREFIX}{field.name}` | {str(field.type).replace(' | None', ', or absent')} |"
        for field in fields(DrawRecord)
    ]
    return "\n".join([CLI_OPENING, *sections, CHUNKS, "| chunk | JSON type |", "|---|---|", *rows]) + "\n"


def modules(folder: str) -> list[Path]:
    """The Python files of a folder that hold something."""
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if path.read_text(encoding="utf-8").strip()]


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring on one line, without references to the project's own notes."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(docstring.partition("\n\n")[0].split())
    return re.sub(r" \((facts|design)\.md[^)]*\)", "", line).replace("|", "\\|")


def file_map() -> str:
    parts = []
    for folder, role in FOLDERS.items():
        parts += [f"### {folder}/: {role}", "", "| file | what it is |", "|---|---|"]
        parts += [f"| [`{p.relative_to(ROOT)}`](../{p.relative_to(ROOT)}) | {summary(p)} |" for p in modules(folder)]
        parts.append("")
    return "\n".join(parts)


def architecture_page(current: str) -> str:
    """The page with its file map made anew; the rest of it is written by hand."""
    before, _, rest = current.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{file_map()}\n{END}{after}"


def wavefront_svg() -> str:
    """A plan of five crops while it is drawn: each crop has finished one row less than the one to its left."""
    side, stride, cell, rows_done = 8, 6, 14, 6
    plan = canvas_plan(Canvas(side, side + 4 * stride), Grid(side, 1), stride, "reuse")
    colours = ("#4477aa", "#66a5ad", "#88aa55", "#ddaa33", "#cc6655")
    width, height = plan.canvas.columns * cell, side * cell
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 20}" height="{height + 68}" '
        f'viewBox="-10 -26 {width + 20} {height + 68}" font-family="sans-serif" font-size="12">',
        f'<rect x="-10" y="-26" width="{width + 20}" height="{height + 68}" fill="#ffffff"/>',
    ]
    for lane, colour in zip(plan.lanes, colours, strict=True):
        done = (rows_done - lane.index) * side + side // 2  # the next row is half drawn
        for draw in (segment for segment in lane.segments if isinstance(segment, Draw)):
            for index in range(draw.start, draw.start + draw.length):
                row, column = plan.cell(lane, index)
                opacity = 1 if index < done else 0.18
                parts.append(
                    f'<rect x="{column * cell}" y="{row * cell}" width="{cell - 1}" height="{cell - 1}" '
                    f'fill="{colour}" fill-opacity="{opacity}"/>'
                )
    for lane, colour in zip(plan.lanes, colours, strict=True):
        left, top = lane.column * cell - 1, -4 - 4 * (lane.index % 2)
        parts.append(
            f'<path d="M{left} {top + 5}V{top}H{left + side * cell}V{top + 5}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
            f'<text x="{left + 2}" y="-14" fill="#333333">crop {lane.index + 1}</text>'
        )
    legend = (
        "full colour: drawn; pale: to come.",
        "A crop is given the codes where its bracket overlaps the one before.",
    )
    for line, text in enumerate(legend):
        parts.append(f'<text x="0" y="{height + 18 + 16 * line}" fill="#333333">{text}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


KINDS = {  # figure -> canvas in codes (rows, columns), loop, step of the wavefront; grid of side 8, strides of 6
    "horizontal": ((8, 38), False, 60),
    "vertical": ((26, 8), False, 130),
    "both": ((20, 38), False, 150),
    "loop": ((8, 36), True, 72),
}


def prompts_svg() -> str:
    """Three prompts along a horizontal panorama: one colour each."""
    canvas, prompts = Canvas(8, 50), [0, 0, 0, 1, 1, 2, 2, 2]
    plan = canvas_plan(canvas, Grid(8, 1), 6, "reuse", prompts=prompts)
    return plan_svg(plan, 72, "one colour for each prompt", colour_of=lambda lane: 2 * lane.prompt)


def given_svg() -> str:
    """A picture in the upper left corner, extended to the right and below."""
    known = [[row < 10 and column < 16 for column in range(32)] for row in range(14)]
    plan = canvas_plan(Canvas(14, 32), Grid(8, 1), 6, "reuse", known=known)
    return plan_svg(plan, 50, "grey: given beforehand")


def two_pass_svg() -> str:
    """The second of two passes: what a schedule gives, and what crops draw between."""
    canvas, grid, stride = Canvas(18, 32), Grid(8, 1), 6
    windows = [place for _, place in crop_windows(canvas, grid, stride, stride, loop=False)]
    chance = random.Random(0)
    shares = given_shares(canvas, windows, grid.side, HOLD).tolist()
    known = [[chance.random() < share for share in row] for row in shares]
    plan = canvas_plan(canvas, grid, stride, "reuse", known=known)
    return plan_svg(plan, 0, "grey: given by the first pass")


def kind_svg(name: str) -> str:
    """A panorama of one kind while it is drawn."""
    (rows, columns), loop, steps = KINDS[name]
    plan = canvas_plan(Canvas(rows, columns), Grid(8, 1), 6, "reuse", loop=loop)
    return plan_svg(plan, steps, f"after {steps} of {predict(plan, prefix_rows=1).steps} steps")


def pages() -> dict[Path, str]:
    """What each generated page should hold now."""
    docs = ROOT / "docs"
    current = (docs / "architecture.md").read_text(encoding="utf-8")
    return {
        docs / "cli.md": cli_page(),
        docs / "architecture.md": architecture_page(current),
        docs / "wavefront.svg": wavefront_svg(),
        docs / "redirect-prompts.svg": prompts_svg(),
        docs / "redirect-given.svg": given_svg(),
        docs / "redirect-two-pass.svg": two_pass_svg(),
        **{docs / f"redirect-{name}.svg": kind_svg(name) for name in KINDS},
    }


def main() -> None:
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
