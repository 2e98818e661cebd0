"""The documentation says what the code does: generated pages are current, links lead somewhere, snippets are real."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import panoserve
from panoserve.cli import build_parser
from panoserve.cli_model import open_folder

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate: ModuleType) -> None:
    pages = generate.pages()
    assert len(pages) >= 7
    stale = [path.name for path, content in pages.items() if path.read_text(encoding="utf-8") != content]
    assert stale == [], "run `make docs`"


def test_the_file_map_covers_every_package_folder(generate: ModuleType) -> None:
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    [folders] = [
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FOLDERS"
    ]
    assert set(generate.FOLDERS) == {"panoserve", *folders}


def test_every_module_says_what_it_is(generate: ModuleType) -> None:
    silent = [
        str(path) for folder in generate.FOLDERS for path in generate.modules(folder) if not generate.summary(path)
    ]
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert "://" not in target or target.startswith("https://"), target
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        assert (page.parent / name).exists(), f"{page.name} links to {target}, which is not there"
        assert name or anchor in headings, f"{page.name} links to {target}, which is no heading of it"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    """Every shell command in a page's `sh` blocks, comments and continuations resolved."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_flags(page: Path) -> None:
    """`panoserve ...` goes through the real parser; `make` targets must be in the Makefile, `-m` modules must exist."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for words in commands(page.read_text(encoding="utf-8")):
        program = Path(words[0]).name
        if program == "panoserve":
            arguments = build_parser().parse_args(words[1:])
            if arguments.command == "generate" and arguments.model is None:
                width, height = arguments.size or (None, None)
                request = panoserve.PanoramaRequest(
                    prompt=arguments.prompt, width=width, height=height, stride=arguments.stride
                )
                request.resolve(open_folder(None).config)  # raises what the embedded model does not draw
        elif program == "make":
            for word in words[1:]:
                name, equals, _ = word.partition("=")
                assert name in (variables if equals else targets), f"make {word}: not in the Makefile"
        elif program.startswith("python") and words[1] == "-m" and words[2] != "pip":
            assert importlib.util.find_spec(words[2]) is not None, f"python -m {words[2]}: no such module"


def test_the_readme_starts_with_the_two_commands() -> None:
    first = next(iter(blocks(README, "sh")))
    assert [words for words in commands(f"```sh\n{first}```") if words[0] == "make"] == [
        ["make", "panorama"],
        ["make", "test"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets_use_what_exists(page: Path) -> None:
    """Snippets compile; what they import from panoserve exists; keyword arguments of the public classes exist."""
    for snippet in blocks(page.read_text(encoding="utf-8"), "python"):
        tree = compile(snippet, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "panoserve":
                assert {alias.name for alias in node.names} <= set(panoserve.__all__)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "PanoramaRequest":
                panoserve.PanoramaRequest(**{str(keyword.arg): None for keyword in node.keywords})


def test_the_readme_shows_a_picture_that_is_there() -> None:
    [picture] = re.findall(r"!\[[^\]]+\]\((docs/[^)]+\.(?:png|jpg))\)", README)
    assert (ROOT / picture).stat().st_size < 1_000_000
