"""Imports go one way (docs/architecture.md), and only through the package's name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"errors", "version", "checkpoint", "configs", "kernels"}
MIDDLE = BASE | {"vq", "models", "redirect"}
FRONT = MIDDLE | {"serve", "train"}
# Who may import what; everyone may import its own folder.
ALLOWED = {
    "configs": {"errors"},
    "kernels": {"errors", "configs"},
    "vq": BASE,
    "models": BASE,
    "redirect": BASE,
    "serve": MIDDLE,
    "train": MIDDLE,
    # like a command: files, the model folder, the engine, a batch
    "benchmarks": FRONT | {"cli_files", "cli_model", "Engine", "batch", "jobs"},
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all modules imported at run time, inside functions too; what only a type checker sees is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_go_one_way(folder: str) -> None:
    wrong = []
    for path in files(folder):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            parts = name.split(".")
            if parts[0] == "panoserve" and parts[1] not in ALLOWED[folder] | {folder}:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("folder", [*ALLOWED, "panoserve", "tests", "docs"])
def test_folders_are_never_imported_by_their_bare_names(folder: str) -> None:
    """The same file under two names would register everything twice, and `kernels` is someone else's package."""
    for path in files(folder):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert name.split(".")[0] not in ALLOWED, f"{path.relative_to(ROOT)} imports {name}"


def test_the_plan_is_pure_python() -> None:
    """Plan, progress, simulator and admission need neither torch nor vLLM: policy is tested in milliseconds."""
    for name in ("plan", "progress", "simulate", "admission"):
        tree = ast.parse((ROOT / "redirect" / f"{name}.py").read_text(encoding="utf-8"))
        assert not {module.split(".")[0] for module in imported(tree)} & {"torch", "vllm", "numpy"}
