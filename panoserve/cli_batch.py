"""`panoserve batch`: a file of jobs, drawn into a folder; see panoserve/batch.py for what can interrupt it."""

from __future__ import annotations

import argparse
import dataclasses
import json

from panoserve.batch import Ledger, Report, Settings, draw_batch, plan_batch, shard_of
from panoserve.cli_draw import quiet_engine, warn
from panoserve.cli_model import open_folder
from panoserve.errors import InvalidRequestError, ModelFolderError
from panoserve.jobs import read_jobs


def shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8)."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N with I from 1 to N, such as 2/8")
    return int(index), int(count)


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
    mine = shard_of(jobs, arguments.shard)
    settings = Settings(folder, arguments.context, arguments.dtype)
    tasks, report = plan_batch(mine, settings, ledger, arguments.resume)
    if tasks:
        with quiet_engine(arguments.verbose):
            from tqdm import tqdm

            from panoserve import Engine

            options = {"dtype": arguments.dtype, "context": arguments.context, "kv_cache_gib": arguments.kv_cache_gib}
            total = sum(task.codes for task in tasks)
            with Engine(folder.path, **options) as engine, tqdm(total=total, unit="code", desc="drawing") as bar:

                def advance(codes: int) -> None:
                    bar.set_postfix(
                        done=report.done, failed=report.failed, left=len(tasks) - report.done, refresh=False
                    )
                    bar.update(codes)

                draw_batch(engine, tasks, ledger, report, advance)
    index, count = arguments.shard
    name = "results.jsonl" if count == 1 else f"results-{index}-of-{count}.jsonl"
    found = ledger.results(mine, arguments.output / name)
    return _end(dataclasses.replace(found, done=report.done, resumed=report.resumed, seconds=report.seconds), arguments)


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
