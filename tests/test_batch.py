"""Batches: every job exactly once, whatever interrupts the work; an engine stands in that draws from the seed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from panoserve import Panorama, PanoramaRequest
from panoserve.batch import Ledger, Report, Settings, draw_batch, plan_batch, shard_of
from panoserve.configs.model import ModelConfig
from panoserve.errors import InvalidRequestError, PanoramaFailedError, PanoserveError
from panoserve.jobs import BadJob, Job
from panoserve.serve.request import PanoramaStats

STATS = PanoramaStats(steps=1, drawn=1, forward_tokens=1, copied_slots=0, lanes=1, seconds=0.5)


class Interrupted(Exception):
    """Stands for whatever ends a run in the middle."""


class StandIn:
    """Has of an Engine what a batch needs; draws noise from the seed, fails on demand, notes what it was asked."""

    def __init__(self, fail: tuple[int, ...] = (), stop_after: int | None = None, device: str = "cpu") -> None:
        self.fail, self.stop_after, self.order = fail, stop_after, list[int]()
        weight = SimpleNamespace(device=torch.device(device))
        self.vq = SimpleNamespace(post_quant_conv=SimpleNamespace(weight=weight))

    def draw(
        self, requests: Iterable[PanoramaRequest], advance: Callable[[int], Any]
    ) -> Iterator[tuple[int, Panorama | PanoserveError]]:
        for index, request in enumerate(requests):
            if index == self.stop_after:
                raise Interrupted
            assert request.seed is not None and request.width is not None
            self.order.append(request.seed)
            advance(7)
            if request.seed in self.fail:
                yield index, PanoramaFailedError("the engine gave up")
            else:
                noise = torch.randint(
                    256, (4, request.width // 8), generator=torch.Generator().manual_seed(request.seed)
                )
                yield index, Panorama(request, noise, None, STATS, truncated=False)

    def picture(self, panorama: Panorama) -> Image.Image:
        return Image.fromarray(panorama.codes.to(torch.uint8).numpy())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folder = tmp_path / "model"
    folder.mkdir()
    config = ModelConfig.preset("B", grid_side=4, downsample=8, condition="class", num_classes=10)
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return Settings(SimpleNamespace(path=folder, config=config), "reuse", "float32")  # type: ignore[arg-type]


def jobs_of(count: int) -> list[Job | BadJob]:
    return [
        Job(n, f"job.{n}", PanoramaRequest(label=1, width=32 + 8 * (n % 5), height=32, seed=n), None)
        for n in range(1, count + 1)
    ]


def run(engine: StandIn, jobs: list[Job | BadJob], settings: Settings, out: Path, resume: bool = False) -> Report:
    ledger = Ledger(out)
    tasks, report = plan_batch(jobs, settings, ledger, resume)
    return draw_batch(engine, tasks, ledger, report)  # type: ignore[arg-type]


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}


def test_every_job_becomes_a_picture_and_a_sidecar_longest_first(settings: Settings, tmp_path: Path) -> None:
    jobs, engine = jobs_of(12), StandIn()
    report = run(engine, jobs, settings, tmp_path / "out")
    assert (report.done, report.resumed, report.failed, report.complete) == (12, 0, 0, True)
    widths = [32 + 8 * (seed % 5) for seed in engine.order]
    assert widths == sorted(widths, reverse=True)
    for job in jobs:
        sidecar = json.loads((tmp_path / "out" / f"{job.id}.json").read_text(encoding="utf-8"))
        with Image.open(tmp_path / "out" / sidecar["picture"]) as picture:
            assert picture.width == sidecar["request"]["width"] // 8
            assert json.loads(str(picture.info["panoserve.seed"])) == job.number
    assert not list((tmp_path / "out").glob(".*"))


def test_an_interrupted_batch_is_resumed_without_a_job_lost_or_drawn_twice(settings: Settings, tmp_path: Path) -> None:
    jobs, whole = jobs_of(23), tmp_path / "whole"
    run(StandIn(), jobs, settings, whole)
    out, order = tmp_path / "out", list[int]()
    for stop in (0, 3, 1, 7):
        engine = StandIn(stop_after=stop)
        with pytest.raises(Interrupted):
            run(engine, jobs, settings, out, resume=True)
        order += engine.order
        (out / ".job.9.png.abc123").write_bytes(b"half a picture")  # what a kill leaves
    engine = StandIn()
    report = run(engine, jobs, settings, out, resume=True)
    assert (report.done, report.resumed, report.complete) == (12, 11, True)
    assert sorted(order + engine.order) == list(range(1, 24))
    assert pictures(out) == pictures(whole)
    assert not list(out.glob(".*"))


def test_failures_are_written_counted_and_tried_again(settings: Settings, tmp_path: Path) -> None:
    wrong = Job(3, "wrong", PanoramaRequest(label=99, width=32, height=32), None)
    jobs = [*jobs_of(2), wrong, BadJob(4, "000004", "the line is not JSON")]
    out = tmp_path / "out"
    report = run(StandIn(fail=(2,)), jobs, settings, out)
    assert (report.done, report.failed, report.complete) == (1, 3, False)
    found = Ledger(out).results(jobs, out / "results.jsonl")
    assert (found.resumed, found.failed, found.missing) == (1, 3, 0)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["status"] for line in lines] == ["done", "failed", "failed", "failed"]
    assert lines[1]["error"] == "the engine gave up" and "label is 99" in lines[2]["error"]
    assert run(StandIn(), jobs, settings, out, resume=True).done == 1
    assert not (out / "job.2.error.json").exists() and (out / "job.2.png").exists()


def test_a_full_folder_needs_resume_and_other_requests_another_folder(settings: Settings, tmp_path: Path) -> None:
    jobs, out = jobs_of(2), tmp_path / "out"
    run(StandIn(), jobs, settings, out)
    with pytest.raises(InvalidRequestError, match="add --resume"):
        run(StandIn(), jobs, settings, out)
    changed = [Job(1, "job.1", PanoramaRequest(label=2, width=32, height=32, seed=1), None)]
    with pytest.raises(InvalidRequestError, match="another request"):
        run(StandIn(), changed, settings, out, resume=True)


def test_shards_divide_the_jobs_and_merge(settings: Settings, tmp_path: Path) -> None:
    jobs, out = jobs_of(7), tmp_path / "out"
    shards = [shard_of(jobs, (index, 3), settings.folder.config) for index in (1, 2, 3)]
    assert sorted(job.number for shard in shards for job in shard) == list(range(1, 8))
    run(StandIn(), shards[0], settings, out)
    run(StandIn(), shards[1], settings, out)
    found = Ledger(out).results(jobs, out / "results.jsonl")
    assert (found.resumed, found.missing, found.complete) == (5, 2, False)
    run(StandIn(), shards[2], settings, out)
    assert Ledger(out).results(jobs, out / "results.jsonl").complete


def test_shards_are_about_as_long_as_each_other(settings: Settings) -> None:
    """Jobs that are wide, narrow, wide, ... by their place in the file; one takes the model's own width, one is wrong,
    and one's width is no number.
    """
    sizes: list[Any] = [640, 32, 320, 40, 640, 40, 320, None, "wide"]
    jobs: list[Job | BadJob] = [
        Job(number, f"job.{number}", PanoramaRequest(label=1, width=width, height=32), None)
        for number, width in enumerate(sizes, start=1)
    ]
    jobs.append(BadJob(10, "job.10", "no request"))
    own = PanoramaRequest(label=1).resolve(settings.folder.config).width
    assert own is not None and 40 < own < 320
    shards = [shard_of(jobs, (index, 2), settings.folder.config) for index in (1, 2)]
    assert [[job.number for job in shard] for shard in shards] == [[1, 3, 6, 8, 9], [2, 4, 5, 7, 10]]


def test_a_picture_that_cannot_be_written_fails_its_job_only(settings: Settings, tmp_path: Path) -> None:
    jobs, out = jobs_of(3), tmp_path / "out"
    (out / "job.2.png").mkdir(parents=True)
    report = run(StandIn(), jobs, settings, out)
    assert (report.done, report.failed) == (2, 1)
    assert (out / "job.2.error.json").exists() and not (out / "job.2.json").exists()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_who_decodes(device: str, settings: Settings, tmp_path: Path) -> None:
    """The thread that draws on a CPU, the one that writes on a GPU."""

    class Notes(StandIn):
        def picture(self, panorama: Panorama) -> Image.Image:
            threads.add(threading.current_thread() is threading.main_thread())
            return super().picture(panorama)

    threads: set[bool] = set()
    assert run(Notes(device=device), jobs_of(3), settings, tmp_path / "out").done == 3
    assert threads == {device == "cpu"}


def test_what_is_being_decoded_when_a_run_is_interrupted_is_written(settings: Settings, tmp_path: Path) -> None:
    class Stops(StandIn):
        stopped = False

        def picture(self, panorama: Panorama) -> Image.Image:
            if len(self.order) == 2 and not self.stopped:
                self.stopped = True
                raise KeyboardInterrupt
            return super().picture(panorama)

    with pytest.raises(KeyboardInterrupt):
        run(Stops(), jobs_of(4), settings, tmp_path / "out")
    assert len(pictures(tmp_path / "out")) == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_whatever_goes_wrong_with_a_picture_is_its_jobs_alone(device: str, settings: Settings, tmp_path: Path) -> None:
    class Breaks(StandIn):
        def picture(self, panorama: Panorama) -> Any:
            if panorama.request.seed == self.order[0]:
                raise ValueError("the picture holds NaN")
            return super().picture(panorama)

    report = run(Breaks(device=device), jobs_of(3), settings, tmp_path / "out")
    assert (report.done, report.failed) == (2, 1)
    [error] = (tmp_path / "out").glob("*.error.json")
    assert "NaN" in error.read_text()


def test_leftovers_are_those_of_the_shards_own_jobs(tmp_path: Path) -> None:
    """A job `a` and another shard's `a.b`, whose temporary file begins like one of a job `a.b.png`."""
    for name in (".a.png.x1", ".a.json.x2", ".a.error.json.x3", ".a.b.png.x4", ".a.b.json.x5"):
        (tmp_path / name).touch()
    Ledger(tmp_path).remove_leftovers({"a"})
    assert {path.name for path in tmp_path.iterdir()} == {".a.b.png.x4", ".a.b.json.x5"}
