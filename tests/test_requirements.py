"""The pinned lists, the environment they make, and the script that makes it (without running pip)."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from panoserve.doctor import FORBIDDEN_ON_CPU, normalise

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_script", REQUIREMENTS / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(install: ModuleType, *names: str) -> dict[str, str]:
    """Normalised name -> version of the pins that apply to this machine."""
    requirements = [Requirement(line) for name in names for line in install.requirement_lines(REQUIREMENTS / name)]
    applying = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    assert len({normalise(r.name) for r in applying}) == len(applying), "a package is listed twice"
    for requirement in applying:
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), f"{requirement} is not pinned"
    return {normalise(r.name): str(r.specifier).removeprefix("==") for r in applying}


def test_what_breaks_vllm_is_not_listed(install: ModuleType) -> None:
    listed = pins(install, "cpu.txt", "dev.txt", "bench.txt")  # nothing twice, so bench.txt changes no version
    assert not set(FORBIDDEN_ON_CPU) & set(listed)
    assert install.FORBIDDEN_ON_CPU == FORBIDDEN_ON_CPU
    assert int(listed["setuptools"].partition(".")[0]) < 81


@pytest.mark.skipif(
    not (ROOT / ".venv" / "panoserve-stamp").is_file() or Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(),
    reason="not in the environment that `make setup` made",
)
def test_this_environment_is_the_list(install: ModuleType) -> None:
    if "vllm" in {normalise(d.metadata["Name"]) for d in metadata.distributions()}:
        pytest.skip("the CUDA environment is resolved by pip")
    wrong = {
        name: (metadata.version(name), version)
        for name, version in pins(install, "cpu.txt", "dev.txt").items()
        if metadata.version(name) != version
    }
    assert wrong == {}


def test_the_list_covers_what_we_declare(install: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = pins(install, "cpu.txt", "dev.txt")
    for text in project["dependencies"] + extras["cpu"] + extras["test"] + extras["dev"]:
        requirement = Requirement(text)
        name = normalise(requirement.name)
        assert name in listed, f"{text} is not in requirements/"
        assert requirement.specifier.contains(listed[name].partition("+")[0]), f"{text}, but {listed[name]} is pinned"
    for text in extras["cuda"]:
        cuda = [Requirement(line) for line in install.requirement_lines(REQUIREMENTS / "cuda.txt")]
        assert Requirement(text).name in [requirement.name for requirement in cuda]


def test_the_list_is_closed(install: ModuleType) -> None:
    """Everything that a listed package requires is listed too, but for what we leave out on purpose."""
    listed = pins(install, "cpu.txt", "dev.txt")
    missing = {}
    for name in listed:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and normalise(requirement.name) not in {*listed, *FORBIDDEN_ON_CPU}:
                missing[name] = text
    assert missing == {}


def test_the_fingerprint_follows_every_input(install: ModuleType, tmp_path: Path) -> None:
    names = (
        *("requirements/cpu.txt", "requirements/dev.txt", "requirements/install.py", "pyproject.toml", "setup.py"),
        "kernels/native/module.c",
    )
    (tmp_path / "requirements").mkdir()
    (tmp_path / "kernels" / "native").mkdir(parents=True)
    for name in (*names, "requirements/cuda.txt"):
        (tmp_path / name).write_text("a")
    seen = {install.fingerprint(*kind, tmp_path) for kind in (("cpu", True), ("cpu", False), ("cuda", False))}
    for name in names:
        (tmp_path / name).write_text("b")
        seen.add(install.fingerprint("cpu", True, tmp_path))
    assert len(seen) == 3 + len(names)


class Recorder:
    """Stands for the steps of the installation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, install: ModuleType, fail_at: str | None = None) -> None:
        self.pip: list[tuple[str, ...]] = []
        self.fail_at = fail_at
        monkeypatch.setattr(install, "ensure_venv", lambda venv: venv / "bin" / "python")
        monkeypatch.setattr(install, "missing_system_packages", lambda device: [])
        monkeypatch.setattr(install, "compiles_kernels", lambda: True)
        monkeypatch.setattr(install, "pip", self.run)
        monkeypatch.setattr(install.subprocess, "run", lambda command, **options: None)  # byte code

    def run(self, python: Path, *arguments: str) -> bool:
        self.pip.append(arguments)
        return not (self.fail_at and any(self.fail_at in argument for argument in arguments))


def test_the_second_time_nothing_is_done(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(monkeypatch, install)
    install.main(["--venv", str(tmp_path), "--device", "cpu"])
    first = len(recorder.pip)
    assert first > 0
    assert all("--no-deps" in call for call in recorder.pip if call[0] == "install")
    capsys.readouterr()
    install.main(["--venv", str(tmp_path), "--device", "cpu"])
    assert len(recorder.pip) == first
    assert capsys.readouterr().err == ""
    install.main(["--venv", str(tmp_path), "--device", "cuda"])
    assert len(recorder.pip) > first


@pytest.mark.parametrize("fail_at", ["torch==", "cpu.txt", "--editable"])
def test_an_interrupted_installation_is_taken_up_again(
    fail_at: str, install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recorder(monkeypatch, install)
    install.main(["--venv", str(tmp_path), "--device", "cpu"])
    assert (tmp_path / install.STAMP).is_file()
    monkeypatch.setattr(install, "fingerprint", lambda device, builds: "changed")
    recorder = Recorder(monkeypatch, install, fail_at)
    with pytest.raises(SystemExit, match="install: error: "):
        install.main(["--venv", str(tmp_path), "--device", "cpu"])
    assert not (tmp_path / install.STAMP).exists()
    recorder.fail_at = None
    install.main(["--venv", str(tmp_path), "--device", "cpu"])
    assert (tmp_path / install.STAMP).read_text() == "changed"


def test_a_machine_without_the_cpu_wheel_is_told_what_to_do(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, install, "torch==")
    with pytest.raises(SystemExit, match=r"make TORCH_INDEX=<that address> panorama"):
        install.main(["--venv", str(tmp_path), "--device", "cpu"])
    recorder.fail_at = None
    install.main(["--venv", str(tmp_path), "--device", "cpu", "--torch-index", "file:///wheels"])
    assert ("--extra-index-url", "file:///wheels") in [call[2:4] for call in recorder.pip]


def test_missing_system_packages_are_named_to_an_ordinary_user(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(install.ctypes, "CDLL", no_library)
    monkeypatch.setattr(install.os, "geteuid", lambda: 1000)
    assert install.missing_system_packages("cpu") == ["libnuma1"]
    assert install.missing_system_packages("cuda") == []
    assert "sudo apt-get install -y libnuma1" in install.install_system_packages(["libnuma1"])
    with pytest.raises(SystemExit, match="this machine lacks libnuma1"):
        install.main(["--venv", str(tmp_path), "--device", "cpu"])


def test_without_a_compiler_kernels_are_left_out_until_there_is_one(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(monkeypatch, install)
    monkeypatch.setattr(install.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(install, "compiles", lambda header: False)
    monkeypatch.setattr(install, "compiles_kernels", lambda: False)
    install.main(["--venv", str(tmp_path), "--device", "cpu"])
    said = capsys.readouterr().err
    assert "several times slower" in said and "sudo apt-get install -y gcc libc6-dev" in said
    first = len(recorder.pip)
    install.main(["--venv", str(tmp_path), "--device", "cpu"])  # nothing has changed
    assert len(recorder.pip) == first
    monkeypatch.setattr(install, "compiles_kernels", lambda: True)
    install.main(["--venv", str(tmp_path), "--device", "cpu"])
    assert len(recorder.pip) > first


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler here")
def test_what_is_missing_is_asked_for_and_no_more(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(install, "install_system_packages", lambda names: asked.append(names) or "by hand")
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(install.sysconfig, "get_path", lambda name: str(tmp_path))
    assert install.compiles("omp.h") and not install.compiles("Python.h")
    assert not install.ensure_compiler()
    assert asked == [[f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"]]
    (tmp_path / "Python.h").touch()
    assert install.ensure_compiler() and len(asked) == 1
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not install.ensure_compiler()
    assert asked[1:] == [["gcc", "libc6-dev"]]


def test_another_python_is_refused(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "PYTHONS", ((3, 99),))
    with pytest.raises(SystemExit, match=r"expected 3\.11 or 3\.12"):
        install.main(["--venv", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_no_package_index_is_named_in_the_repository() -> None:
    """Where packages come from is the machine's business; `make TORCH_INDEX=` and pip's own configuration say it."""
    for path in (ROOT / "Makefile", ROOT / ".ci" / "run", *sorted(REQUIREMENTS.iterdir())):
        if path.is_file():
            assert "://" not in path.read_text(encoding="utf-8"), path
