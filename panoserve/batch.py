"""Thousands of jobs through one engine, so that nothing is lost or drawn twice however often the work is interrupted.

A finished job is a picture `ID.png` and a sidecar `ID.json`. The sidecar is written last, and both appear whole, so the
folder itself is the record of what remains. A job that cannot be drawn leaves `ID.error.json` instead. Jobs are drawn
longest first, because a long panorama that starts last would finish alone; a thread writes pictures while the engine
draws on. On a GPU it also decodes them; on a CPU that is done between two steps, since beside a step it would take
the cores in turns with it, and each waits for the other's threads (figures in docs/log.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoserve.cli_draw import record_of
from panoserve.cli_files import fingerprint_model, write_atomically
from panoserve.cli_record import DrawRecord, write_png
from panoserve.configs.model import ModelConfig
from panoserve.errors import InvalidRequestError, PanoserveError
from panoserve.jobs import BadJob, Job

if TYPE_CHECKING:
    from panoserve.serve.engine import Engine
    from panoserve.serve.folder import ModelFolder
    from panoserve.serve.request import Panorama

WRITES_AHEAD = 4  # drawn panoramas that may wait for the thread that writes them


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What all jobs of a batch share: together with a request they decide the pixels."""

    folder: ModelFolder
    context: str
    dtype: str


@dataclasses.dataclass(slots=True)
class Report:
    """How a batch ended: numbers of jobs, and the seconds this run took."""

    jobs: int
    done: int = 0  # drawn by this run
    resumed: int = 0  # found finished
    failed: int = 0
    missing: int = 0  # neither finished nor failed: another shard's, or not drawn yet
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return self.done + self.resumed == self.jobs


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A job that can be drawn: its resolved record, and the codes that it takes."""

    job: Job
    record: DrawRecord
    codes: int

    @property
    def key(self) -> str:
        """Fingerprint of everything that decides the pixels; of features it is their content, not their place."""
        values = {**dataclasses.asdict(self.record), "features": None}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """The output folder, read as the record of what is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def picture(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def sidecar(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def failure(self, name: str) -> Path:
        return self.folder / f"{name}.error.json"

    def read(self, path: Path) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InvalidRequestError(f"{path} is not the JSON that a batch writes ({error}); remove it") from None
        return found

    def finished(self, task: Task) -> bool:
        """Whether the job is done. Raises InvalidRequestError if its files are those of another request."""
        found = self.read(self.sidecar(task.job.id))
        if found is None:
            return False
        if found.get("key") != task.key:
            raise InvalidRequestError(
                f"{self.sidecar(task.job.id)} was drawn from another request, model or setting than that job asks for "
                "now; choose another folder, or remove the file to draw it again"
            )
        return self.picture(task.job.id).is_file()

    def write_done(self, task: Task, panorama: Panorama) -> None:
        assert panorama.image is not None
        write_png(panorama.image, self.picture(task.job.id), task.record)
        _write_json(
            self.sidecar(task.job.id),
            {
                "id": task.job.id,
                "number": task.job.number,
                "picture": self.picture(task.job.id).name,
                "key": task.key,
                "request": dataclasses.asdict(task.record),
                "truncated": panorama.truncated,
                "codes_sha256": hashlib.sha256(panorama.codes.numpy().tobytes()).hexdigest(),
                "stats": dataclasses.asdict(panorama.stats),
            },
        )
        self.failure(task.job.id).unlink(missing_ok=True)

    def write_failed(self, number: int, name: str, error: str) -> None:
        _write_json(self.failure(name), {"id": name, "number": number, "error": error})

    def remove_leftovers(self, names: set[str]) -> None:
        """Remove the temporary files that a killed run left for these jobs."""
        for path in self.folder.glob(".*"):
            if _ids(path.name) & names:
                path.unlink(missing_ok=True)

    def results(self, jobs: Iterable[Job | BadJob], path: Path) -> Report:
        """Write one line a job, in the order of the file, and count."""
        lines, counts = [], Report(jobs=0)
        for job in jobs:
            counts.jobs += 1
            done, failed = self.read(self.sidecar(job.id)), self.read(self.failure(job.id))
            if done is not None:
                counts.resumed += 1
                lines.append({"id": job.id, "status": "done", "picture": done["picture"], "stats": done["stats"]})
            elif failed is not None:
                counts.failed += 1
                lines.append({"id": job.id, "status": "failed", "error": failed["error"]})
            else:
                counts.missing += 1
                lines.append({"id": job.id, "status": "missing"})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(path, lambda file: file.write(text.encode()))
        return counts


def shard_of(jobs: Sequence[Job | BadJob], shard: tuple[int, int], config: ModelConfig) -> list[Job | BadJob]:
    """The jobs of shard i of n (1 <= i <= n), in the order of the file: every n-th one by its codes, so that shards are
    about as long as each other.
    """

    def codes(job: Job | BadJob) -> int:
        try:
            canvas = None if isinstance(job, BadJob) else job.request.resolve(config).canvas(config)
        except InvalidRequestError:  # for plan_batch to say
            canvas = None
        return canvas.rows * canvas.columns if canvas else 0

    index, count = shard
    sizes = [codes(job) for job in jobs]
    largest_first = sorted(range(len(jobs)), key=lambda place: -sizes[place])
    return [jobs[place] for place in sorted(largest_first[index - 1 :: count])]


def plan_batch(
    jobs: Sequence[Job | BadJob], settings: Settings, ledger: Ledger, resume: bool
) -> tuple[list[Task], Report]:
    """Sort jobs into those to draw, longest first, those that are done, and those that are wrong (written down)."""
    ledger.folder.mkdir(parents=True, exist_ok=True)
    report, tasks = Report(jobs=len(jobs)), []
    failures: list[tuple[int, str, str]] = []
    fingerprint = fingerprint_model(settings.folder.path)
    for job in jobs:
        if isinstance(job, BadJob):
            failures.append((job.number, job.id, job.error))
            continue
        try:
            request = job.request.resolve(settings.folder.config, settings.context)
        except InvalidRequestError as error:
            failures.append((job.number, job.id, str(error)))
            continue
        canvas = request.canvas(settings.folder.config)
        context = request.context or settings.context
        record = record_of(request, job.features, settings.folder, fingerprint, context, settings.dtype)
        task = Task(dataclasses.replace(job, request=request), record, canvas.rows * canvas.columns)
        if ledger.finished(task):
            report.resumed += 1
        else:
            tasks.append(task)
    if report.resumed and not resume:
        raise InvalidRequestError(
            f"{ledger.folder} holds {report.resumed} finished jobs of this file already; add --resume to draw the "
            "others, or choose another folder"
        )
    for number, name, reason in failures:
        ledger.write_failed(number, name, reason)
    report.failed = len(failures)
    ledger.remove_leftovers({job.id for job in jobs})
    return sorted(tasks, key=lambda task: -task.codes), report


def draw_batch(
    engine: Engine, tasks: Sequence[Task], ledger: Ledger, report: Report, advance: Callable[[int], Any] = int
) -> Report:
    """Draw the tasks of `plan_batch`, writing every job as it is finished; returns the counts.

    `advance` is told how many codes more are drawn. Whatever ends the loop, what is drawn by then is written.
    """
    # Asked for sooner than after the first drawing, if it cannot be loaded.
    between_steps = engine.vq.post_quant_conv.weight.device.type == "cpu"
    begun = time.perf_counter()
    writing: deque[tuple[Task, Future[None]]] = deque()

    def failed(task: Task, error: Exception) -> None:
        ledger.write_failed(task.job.number, task.job.id, str(error) or type(error).__name__)
        report.failed += 1

    def settle() -> None:
        task, future = writing.popleft()
        try:
            future.result()
        except Exception as error:  # of this picture alone
            failed(task, error)
        else:
            report.done += 1

    def decoded(panorama: Panorama) -> Panorama:
        return dataclasses.replace(panorama, image=engine.picture(panorama))

    def write(task: Task, panorama: Panorama) -> None:
        ledger.write_done(task, decoded(panorama) if panorama.image is None else panorama)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as pool:
        try:
            for index, result in engine.draw((task.job.request for task in tasks), advance):
                task = tasks[index]
                if isinstance(result, PanoserveError):
                    failed(task, result)
                    continue
                try:
                    panorama = decoded(result) if between_steps else result
                except Exception as error:  # of this picture alone
                    failed(task, error)
                    continue
                except BaseException:  # interrupted: the other thread decodes it
                    writing.append((task, pool.submit(write, task, result)))
                    raise
                writing.append((task, pool.submit(write, task, panorama)))
                while len(writing) > WRITES_AHEAD:
                    settle()
        finally:
            while writing:
                settle()
            report.seconds = time.perf_counter() - begun
    return report


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _ids(name: str) -> set[str]:
    """The jobs that a temporary file `.ID.png.xxxx` may be of."""
    file = name[1:].rpartition(".")[0]
    return {file.removesuffix(ending) for ending in (".png", ".json", ".error.json") if file.endswith(ending)}
