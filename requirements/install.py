"""Make the virtual environment that the Makefile works in. Standard library only: it runs before anything is installed.

    python3.11 requirements/install.py [--venv .venv] [--device auto|cpu|cuda] [--torch-index URL]

Does nothing when the environment already is what the files say (a stamp in it holds their fingerprint; it is removed
first and written last, so an interrupted installation is taken up again). Packages are installed from the pinned lists
with --no-deps: left to itself, pip would add torchvision, torchaudio and torchcodec, which break `import vllm` on a
machine without a GPU (see requirements/cpu.txt).
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PYTHONS = ((3, 11), (3, 12))
STAMP = "panoserve-stamp"
FORBIDDEN_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
CPU_TORCH_HINT = """
pip found no CPU build of torch ({pin}). PyPI carries the CUDA build only; give pip the index of CPU wheels that the
install selector of pytorch.org prints for "Linux, Pip, Python, CPU":

    make TORCH_INDEX=<that address> panorama
"""


def fail(message: str) -> NoReturn:
    sys.exit(f"install: error: {message}")


def say(message: str) -> None:
    print(f"install: {message}", file=sys.stderr, flush=True)


def choose_device() -> str:
    """`cuda` where nvidia-smi runs, else `cpu`."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "cpu"
    return "cuda" if subprocess.run([command, "-L"], capture_output=True, check=False).returncode == 0 else "cpu"


def requirement_lines(path: Path) -> list[str]:
    """The requirements in a file, without comments and blank lines."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def fingerprint(device: str, builds: bool, root: Path = ROOT) -> str:
    """SHA-256 of all that decides what the environment holds; the checkout's place counts, the install is editable.

    builds: whether our kernels can be built.
    """
    digest = hashlib.sha256(f"{device}\n{builds}\n{sys.version_info[:2]}\n{root}\n".encode())
    for name in (
        f"requirements/{device}.txt",
        "requirements/dev.txt",
        "requirements/install.py",
        "pyproject.toml",
        "setup.py",
        *sorted(str(path.relative_to(root)) for path in (root / "kernels" / "native").glob("*")),
    ):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def missing_system_packages(device: str) -> list[str]:
    """Debian packages that hold what pip cannot bring: venv's ensurepip, and libnuma for vLLM's CPU kernels."""
    missing = []
    try:
        import ensurepip  # noqa: F401  (Debian splits it off)
    except ImportError:
        missing.append(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")
    if device == "cpu" and sys.platform == "linux":
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            missing.append("libnuma1")
    return missing


def install_system_packages(names: list[str]) -> str:
    """Install Debian packages as root. Returns what is to be done by hand, empty if nothing is."""
    command, lacking = f"apt-get install -y {' '.join(names)}", f"this machine lacks {' and '.join(names)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return f"{lacking}; install with: sudo {command}  (or what your system calls it)"
    say(f"{lacking}; running {command}")
    for arguments in (["update"], ["install", "-y", *names]):
        if subprocess.run(["apt-get", "-qq", *arguments], stdout=sys.stderr, check=False).returncode:
            return f"could not install {' and '.join(names)}; try by hand: {command}"
    return ""


def compiles(header: str) -> bool:
    """Whether the compiler that setuptools will call is there, and finds a header."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return False
    command = [compiler, "-fopenmp", "-I", sysconfig.get_path("include"), "-E", "-x", "c", "-o", os.devnull, "-"]
    program = f"#include <{header}>\n".encode()
    return subprocess.run(command, input=program, capture_output=True, check=False).returncode == 0


def compiles_kernels() -> bool:
    """Whether there are a C compiler, OpenMP and Python's headers, which kernels/native is built with."""
    return compiles("omp.h") and compiles("Python.h")


def ensure_compiler() -> bool:
    """compiles_kernels, after an attempt to install what is missing. Without it everything works, but slowly."""
    problems = []
    if not compiles("omp.h"):
        problems.append(install_system_packages(["gcc", "libc6-dev"]))
    if compiles("omp.h") and not compiles("Python.h"):  # a Python that is not the system's brings its own
        problems.append(install_system_packages([f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"]))
    if compiles_kernels():
        return True
    needed = "what is needed is a C compiler with OpenMP, and the header Python.h of this Python"
    reasons = "; ".join(filter(None, problems)) or needed
    say(f"our kernels will not be built, and drawing on the CPU will be several times slower: {reasons}")
    return False


def ensure_venv(venv: Path) -> Path:
    """Return the environment's python; make the environment when it is missing or broken (half made, Python gone)."""
    python = venv / "bin" / "python"
    probe = [
        str(python),
        "-c",
        "import pip, sys; sys.exit(list(sys.version_info[:2]) != " + repr(list(sys.version_info[:2])) + ")",
    ]
    if python.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return python
    say(f"making {venv} with Python {sys.version.split()[0]}")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=False).returncode:
        fail(f"could not make a virtual environment in {venv}")
    return python


def pip(python: Path, *arguments: str) -> bool:
    """Run pip in the environment; True when it succeeded."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0


def install_cpu(python: Path, torch_index: str | None) -> None:
    """The pinned list; torch first, so that the one package that may need another index fails early and clearly."""
    lines = requirement_lines(REQUIREMENTS / "cpu.txt")
    torch = [line for line in lines if line.startswith("torch==")]
    extra = ["--extra-index-url", torch_index] if torch_index else []
    if not pip(python, "install", "--no-deps", *extra, *torch):
        fail("torch could not be installed" + CPU_TORCH_HINT.format(pin=torch[0].partition(" ;")[0]))
    files = [arg for name in ("cpu.txt", "dev.txt") for arg in ("-r", str(REQUIREMENTS / name))]
    # --no-compile: byte code is written below instead, on all cores
    if not pip(python, "install", "--no-deps", "--no-compile", "--only-binary=:all:", *files):
        fail("pip could not install the pinned packages; its message is above. Run the same command again to go on")
    pip(python, "uninstall", "--yes", *FORBIDDEN_ON_CPU)
    packages = python.parent.parent / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # files that no Python 3 can compile are templates that nothing imports
    subprocess.run([str(python), "-m", "compileall", "-qq", "-j", "0", str(packages)], check=False)


def install_cuda(python: Path) -> None:
    """vLLM for CUDA with its own dependencies, then our tools. Not run on a GPU yet."""
    if not pip(python, "install", "-r", str(REQUIREMENTS / "cuda.txt")):
        fail(
            "pip could not install requirements/cuda.txt; its message is above. "
            "For the CPU engine on this machine: make DEVICE=cpu setup"
        )
    if not pip(python, "install", "--no-deps", "-r", str(REQUIREMENTS / "dev.txt")):
        fail("pip could not install requirements/dev.txt; its message is above. Run the same command again to go on")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make or update the virtual environment of this checkout.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--torch-index", default=None, help="address of a package index that holds torch's CPU wheel")
    arguments = parser.parse_args(argv)
    if sys.version_info[:2] not in PYTHONS:
        fail(f"got Python {sys.version.split()[0]}, expected 3.11 or 3.12: make PYTHON=python3.11 setup")
    device = choose_device() if arguments.device == "auto" else arguments.device
    builds = device == "cpu" and compiles_kernels()
    wanted = fingerprint(device, builds)
    stamp = arguments.venv / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    stamp.unlink(missing_ok=True)
    say(f"installing for {device} into {arguments.venv}; takes a few minutes the first time, nothing the next")
    if (missing := missing_system_packages(device)) and (problem := install_system_packages(missing)):
        fail(problem)
    if device == "cpu" and not builds:
        wanted = fingerprint(device, ensure_compiler())
    python = ensure_venv(arguments.venv)
    if device == "cpu":
        install_cpu(python, arguments.torch_index)
    else:
        install_cuda(python)
    if not pip(python, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)):
        fail("panoserve itself could not be installed; pip's message is above")
    temporary = stamp.with_suffix(".new")
    temporary.write_text(wanted, encoding="utf-8")
    temporary.replace(stamp)
    say("done")


if __name__ == "__main__":
    main()
