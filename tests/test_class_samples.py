"""Class samples for ADM's evaluator: the jobs are valid requests, and numpy reads the file that is packed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_drawing import CAPTION, CLASS, write_folder
from PIL import Image

from panoserve.benchmarks.class_samples import job_lines, main
from panoserve.jobs import Job, read_jobs


def picture(folder: Path, name: str, pixels: np.ndarray) -> None:
    """What `panoserve batch` leaves of a finished job."""
    Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / f"{name}.json").write_text("{}")


def noise(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def test_the_jobs_are_requests_of_random_classes(tmp_path: Path) -> None:
    model, jobs_file = write_folder(tmp_path / "model", CLASS), tmp_path / "jobs.jsonl"
    assert main(["jobs", "--model", str(model), "--images", "400", "--seed", "3", "-o", str(jobs_file)]) == 0
    jobs = [job for job in read_jobs(jobs_file) if isinstance(job, Job)]
    assert [job.id for job in jobs] == [f"{i:06d}" for i in range(400)]
    requests = [job.request.resolve(CLASS) for job in jobs]
    assert all(r.guidance == 2 and r.top_k == 0 and r.top_p == 1 and r.temperature == 1 for r in requests)
    labels = Counter(r.label for r in requests)
    assert set(labels) == set(range(10)) and max(labels.values()) < 80  # 40 each, give or take
    assert len({r.seed for r in requests}) == 400


def test_the_same_seed_gives_the_same_jobs() -> None:
    def lines(seed: int) -> list[str]:
        return list(job_lines(1000, 5, seed, 2.0, 0, 1.0))

    assert lines(1) == lines(1) != lines(2)
    assert json.loads(lines(1)[0])["id"] == "000000"


def test_numpy_reads_the_packed_pictures_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        picture(tmp_path, f"{index:06d}", noise(16, index))
    output = tmp_path / "samples.npz"
    assert main(["pack", str(tmp_path), "--size", "16", "--images", "3", "-o", str(output)]) == 0
    with np.load(output, allow_pickle=False) as file:
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], np.stack([noise(16, index) for index in range(3)]))


def test_pictures_are_resized_as_upstream_does(tmp_path: Path) -> None:
    pixels = noise(24, 5)
    picture(tmp_path, "000000", pixels)
    output = tmp_path / "samples.npz"
    assert main(["pack", str(tmp_path), "--size", "16", "-o", str(output)]) == 0
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 127.5 - 1
    small = torch.nn.functional.interpolate(image, size=(16, 16), mode="bicubic")[0].permute(1, 2, 0)
    expected = torch.clamp(127.5 * small + 128, 0, 255).to(torch.uint8)  # facts.md 2: upstream's rounding
    with np.load(output) as file:
        difference = np.abs(file["arr_0"][0].astype(int) - expected.numpy().astype(int))
    assert difference.max() <= 1 and difference.mean() < 0.01  # float32 against float64, at the rounding step


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ((), [], "holds no finished picture"),
        (("000000.error.json",), [], "1 jobs that failed, such as 000000.error.json"),
        (("000000.json",), ["--images", "2"], "holds 1 finished pictures, expected 2"),
    ],
)
def test_an_unfinished_batch_is_not_packed(
    files: tuple[str, ...], arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    assert main(["pack", str(tmp_path), *arguments, "-o", str(tmp_path / "samples.npz")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "samples.npz").exists()


def test_a_text_model_has_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_folder(tmp_path / "model", CAPTION)
    assert main(["jobs", "--model", str(model), "-o", str(tmp_path / "jobs.jsonl")]) == 2
    assert "text-conditional" in capsys.readouterr().err
