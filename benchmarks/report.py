"""A benchmark's result for people (a Markdown table) and for later (a line of JSON)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def table(result: dict[str, Any]) -> str:
    """The result for people (Markdown, as it stands in docs/benchmarks.md)."""
    machine, workload, ceilings = result["machine"], result["workload"], result["ceilings"]
    by_rows = ", ".join(f"{value / 1e9:.0f} at {rows} rows" for rows, value in ceilings["flops_by_rows"].items())
    lines = [
        f"Machine: {machine['cpu']}, {machine['cores']} cores ({machine['isa']}), {machine['memory_gib']} GiB; "
        f"torch {machine['torch']}, vLLM {machine['vllm']}; commit {machine['commit']}; {result['date']}",
        f"Workload: GPT-{workload['model_shape'].removeprefix('GPT-')} {workload['dtype']}, grid {workload['grid']}, "
        f"stride {workload['stride']}, {workload['crops']} crops ({workload['grid']} x {workload['columns']} codes), "
        f"guidance {workload['guidance']:g}, top-k {workload['top_k']}; medians of {workload['repeat']}",
        f"Ceilings: read {ceilings['bandwidth'] / 1e9:.1f} GB/s; matrix products, GFLOP/s: {by_rows}",
        f"Baseline: {workload['baseline']} to one whole panorama",
        "",
        "| panoramas | context | lanes | steps | ms/step | codes/s | tokens/code | sequential codes/s | speedup "
        "| lock-step codes/s | speedup | ceiling reached |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {case['panoramas']} | {case['context']} | {case['lanes']} | {case['steps']} | {case['ms_per_step']:.1f} "
        f"| {case['codes_per_second']:.1f} | {case['tokens_per_code']:.3f} | {case['baseline_codes_per_second']:.1f} "
        f"| {case['speedup']:.1f}x | {case['batched_codes_per_second']:.1f} | {case['speedup_over_batched']:.1f}x "
        f"| {case['ceiling_fraction']:.0%} |"
        for case in result["cases"]
    ]
    return "\n".join(lines)


def append_result(path: Path, result: dict[str, Any]) -> None:
    """Add `result` to a JSON Lines file, in one write, after what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())
