"""A batch over several engines with Ray Data: each replica is an actor with an engine of its own, and takes jobs as it
becomes free.

    pip install "ray[data]"
    python examples/ray_batch.py jobs.jsonl -o out/ --replicas 2

The files are those of `panoserve batch`: pictures, sidecars, results.jsonl, and a batch that was interrupted goes on
where it stood. Jobs, model and output must be on a disk that all machines share. On GPUs give each replica its own with
`--gpus 1`; `ray start` makes several machines one cluster before this runs.

Run by hand with Ray 2.60 on one machine: twelve jobs of a small model, two replicas, both of which drew. Not run on
several machines or on GPUs, and not in the tests: Ray is not one of our requirements.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from panoserve.batch import Ledger, Settings, draw_batch, plan_batch
from panoserve.cli_model import open_folder
from panoserve.jobs import read_jobs

CONTEXT, DTYPE = "reuse", "bfloat16"


class Replica:
    """One engine; Ray calls it with some of the jobs at a time."""

    def __init__(self, jobs: str, output: str, model: str | None) -> None:
        from panoserve import Engine

        folder = open_folder(Path(model) if model else None)
        self.jobs, self.ledger = read_jobs(Path(jobs)), Ledger(Path(output))
        self.settings = Settings(folder, CONTEXT, DTYPE)
        self.engine = Engine(folder.path, context=CONTEXT, dtype=DTYPE)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """batch["job"]: places of jobs in the file."""
        mine = [self.jobs[place] for place in batch["job"]]
        tasks, report = plan_batch(mine, self.settings, self.ledger, resume=True)
        report = draw_batch(self.engine, tasks, self.ledger, report)
        return {"done": [report.done], "resumed": [report.resumed], "failed": [report.failed]}


def main() -> int:
    import ray

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("jobs", type=Path, help="as for panoserve batch")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="model folder (default: the embedded model)")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=1, help="of each replica")
    parser.add_argument("--gpus", type=float, default=0, help="of each replica")
    parser.add_argument("--batch", type=int, default=32, help="jobs that a replica takes at a time")
    options = parser.parse_args()

    jobs = read_jobs(options.jobs)
    replicas = ray.data.from_items([{"job": place} for place in range(len(jobs))]).map_batches(
        Replica,
        fn_constructor_kwargs={
            "jobs": str(options.jobs.resolve()),
            "output": str(options.output.resolve()),
            "model": str(options.model.resolve()) if options.model else None,
        },
        batch_size=options.batch,
        compute=ray.data.ActorPoolStrategy(size=options.replicas),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
    )
    counts = replicas.take_all()
    print({name: sum(row[name] for row in counts) for name in ("done", "resumed", "failed")})
    report = Ledger(options.output).results(jobs, options.output / "results.jsonl")
    return 0 if report.complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
