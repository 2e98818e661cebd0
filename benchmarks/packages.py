"""The packages of requirements/bench.txt: metrics, and networks whose weights lie inside a package."""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from types import ModuleType

from panoserve.errors import EnvironmentProblem


def _missing(package: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the quality benchmark needs the package {package}, which is not installed; install what it needs with: "
        "python -m pip install --no-deps -r requirements/bench.txt"
    )


def imported(module: str) -> ModuleType:
    """A module of those packages. Raises EnvironmentProblem, saying what to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise _missing(module.partition(".")[0]) from None


def file_of(package: str, name: str) -> Path:
    """A file inside a package, which is not imported (it may need more than its file does)."""
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise EnvironmentProblem(f"the package {package} holds no {name}; install it again from requirements/bench.txt")
    return path
