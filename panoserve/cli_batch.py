"""`panoserve batch`: a file of jobs, drawn into a folder; see panoserve/batch.py for what can interrupt it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from functools import partial
from typing import Any

from panoserve.batch import Ledger, Report, Settings, Task, draw_batch, plan_batch, shard_of
from panoserve.batch_engines import cores_of, draw_apart
from panoserve.cli_draw import quiet_engine, warn
from panoserve.cli_model import open_folder
from panoserve.errors import EnvironmentProblem, InvalidRequestError, ModelFolderError
from panoserve.jobs import read_jobs


def shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8)."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N with I from 1 to N, such as 2/8")
    return int(index), int(count)


def engines(text: str) -> int:
    """A number of engines."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 on")
    return int(text)


def batch(arguments: argparse.Namespace) -> int:
    """Draw what remains of the file; 0 if every job is done, 1 if any failed or is missing."""
    jobs = read_jobs(arguments.jobs)
    ledger = Ledger(arguments.output)
    if arguments.output.exists() and not arguments.output.is_dir():
        raise InvalidRequestError(f"output {arguments.output} is a file, expected a folder")
    if arguments.merge:
        if not arguments.output.is_dir():
            raise InvalidRequestError(f"output {arguments.output} does not exist, so there is nothing to merge")
        return _end(ledger.results(jobs, arguments.output / "results.jsonl"), arguments)
    folder = open_folder(arguments.model)
    if not folder.has_vq:
        raise ModelFolderError(f"model folder {folder.path} has no vq/, so it cannot make pictures")
    cores = cores_of(arguments.engines) if arguments.engines > 1 else None
    mine = shard_of(jobs, arguments.shard, folder.config)
    settings = Settings(folder, arguments.context, arguments.dtype)
    tasks, report = plan_batch(mine, settings, ledger, arguments.resume)
    if tasks:
        if cores is None:
            _draw_here(arguments, settings, tasks, ledger, report)
        else:
            _draw_apart(arguments, cores, settings, tasks, ledger, report)
    index, count = arguments.shard
    name = "results.jsonl" if count == 1 else f"results-{index}-of-{count}.jsonl"
    found = ledger.results(mine, arguments.output / name)
    return _end(dataclasses.replace(found, done=report.done, resumed=report.resumed, seconds=report.seconds), arguments)


def _draw_here(
    arguments: argparse.Namespace, settings: Settings, tasks: list[Task], ledger: Ledger, report: Report
) -> None:
    with quiet_engine(arguments.verbose):
        from panoserve import Engine

        options = {"dtype": settings.dtype, "context": settings.context, "kv_cache_gib": arguments.kv_cache_gib}
        with Engine(settings.folder.path, **options) as engine, _bar(tasks) as bar:

            def advance(codes: int) -> None:
                bar.set_postfix(done=report.done, failed=report.failed, left=len(tasks) - report.done, refresh=False)
                bar.update(codes)

            draw_batch(engine, tasks, ledger, report, advance)


def _draw_apart(
    arguments: argparse.Namespace,
    cores: list[list[int]],
    settings: Settings,
    tasks: list[Task],
    ledger: Ledger,
    report: Report,
) -> None:
    with quiet_engine(arguments.verbose):
        cache = _cache_of_each(arguments, settings)
    options = {"output": arguments.output, "model": settings.folder.path, "context": settings.context}
    options |= {"dtype": settings.dtype, "kv-cache-gib": cache}
    flags = [f"--{name}={value}" for name, value in options.items()]
    begun = time.perf_counter()
    with _bar(tasks) as bar:
        complaints = draw_apart(
            [*flags, "--resume", "--", str(arguments.jobs)],
            arguments.verbose,
            arguments.shard,
            cores,
            tasks,
            ledger,
            bar.update,
        )
    report.seconds = time.perf_counter() - begun
    report.done = sum(ledger.sidecar(task.job.id).exists() for task in tasks)
    for number, complaint in enumerate(complaints, start=1):
        warn(f"engine {number} of {len(cores)}: {complaint}")


def _cache_of_each(arguments: argparse.Namespace, settings: Settings) -> float:
    """GiB: what was asked for is each engine's, what one engine would take by itself is for all of them. Raises
    EnvironmentProblem or CacheTooSmallError.
    """
    from panoserve.serve.settings import DEFAULT_LANES, DTYPES, GIB, cache_bytes, free_memory

    config, count = settings.folder.config, arguments.engines
    room = partial(cache_bytes, config, DTYPES[settings.dtype], 2 if config.unconditional else 1, DEFAULT_LANES)
    each = room(None) / count / GIB if arguments.kv_cache_gib is None else float(arguments.kv_cache_gib)
    room(each)  # is it enough for one lane?
    if each * count * GIB > (free := free_memory()):
        raise EnvironmentProblem(
            f"{count} engines with a KV cache of {each:g} GiB each need {each * count:g} GiB, but only "
            f"{free / GIB:.1f} GiB of memory are free; ask for fewer engines or a smaller --kv-cache-gib"
        )
    return each


def _bar(tasks: list[Task]) -> Any:
    from tqdm import tqdm

    return tqdm(total=sum(task.codes for task in tasks), unit="code", desc="drawing")


def _end(report: Report, arguments: argparse.Namespace) -> int:
    if report.failed:
        warn(f"{report.failed} jobs failed; {arguments.output} holds an .error.json for each")
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        finished = report.done + report.resumed
        print(
            f"{arguments.output}: {finished} of {report.jobs} jobs done ({report.done} now), {report.failed} failed, "
            f"{report.missing} missing, {report.seconds:.1f} s"
        )
    return 0 if report.complete else 1
