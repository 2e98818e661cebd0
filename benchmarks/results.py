"""Results of benchmarks as lines of JSON: written one by one, read all together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from panoserve.errors import InvalidRequestError

Result = dict[str, Any]  # what one run of a benchmark found; `benchmark` is its name


def append_result(path: Path, result: Result) -> None:
    """Add `result` to a JSON Lines file, in one write, after what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_results(folder: Path) -> list[Result]:
    """Every line of every .jsonl file of a folder, oldest first. Raises InvalidRequestError, naming the wrong line."""
    if not folder.is_dir():
        raise InvalidRequestError(f"{folder} is not a folder; expected one that holds results of benchmarks (.jsonl)")
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                result = json.loads(line)
            except ValueError as error:
                raise InvalidRequestError(f"{path}, line {number} is not JSON ({error}); remove it") from None
            if not isinstance(result, dict) or not {"benchmark", "date"} <= result.keys():
                raise InvalidRequestError(
                    f"{path}, line {number} has no `benchmark` and `date`; expected a benchmark's last line of output"
                )
            results.append(result)
    return sorted(results, key=lambda result: str(result["date"]))


def latest(results: list[Result], *key: str) -> list[Result]:
    """Of the results that agree in the fields `key` (`a.b` is field b of field a) the newest; oldest first."""
    newest: dict[str, Result] = {}
    for result in results:
        values = []
        for name in key:
            value: Any = result
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            values.append(value)
        identity = json.dumps(values)
        newest.pop(identity, None)
        newest[identity] = result
    return list(newest.values())


def measured_on(result: Result) -> str:
    """One line about machine, versions, commit and date."""
    machine = result["machine"]
    return (
        f"Machine: {machine['cpu']}, {machine['cores']} cores ({machine['isa']}), {machine['memory_gib']} GiB; "
        f"torch {machine['torch']}, vLLM {machine['vllm']}; commit {machine['commit']}; {result['date']}"
    )


def stolen_by_host(shares: list[float]) -> str:
    """What a virtual machine's host stole from the runs (machine.StolenTime); nothing for results that do not say."""
    return f"; stolen by the host: {min(shares):.0%} to {max(shares):.0%}" if shares else ""


def markdown(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
