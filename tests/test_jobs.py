"""Jobs files: the three formats give the same jobs, and a bad line is an error of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from panoserve.errors import InvalidRequestError
from panoserve.jobs import BadJob, Job, default_seed, read_jobs

ROWS = [
    {"prompt": "a red sunset, over the sea", "size": "384x192", "seed": 5},
    {"id": "hills", "prompt": "green hills", "width": 960, "height": 192, "guidance": 4.5, "temperature": 0},
    {"id": 7, "label": 3, "top_p": 0.9, "context": "recompute", "negative_prompt": "007"},
]


def written(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(ROWS), encoding="utf-8")
    else:
        names = list(dict.fromkeys(name for row in ROWS for name in row))
        cells = [["" if name not in row else f'"{row[name]}"' for name in names] for row in ROWS]
        path.write_text("\n".join([",".join(names), *(",".join(row) for row in cells)]), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".yaml", ".csv"])
def test_every_format_gives_the_same_jobs(tmp_path: Path, suffix: str) -> None:
    jobs = read_jobs(written(tmp_path / f"jobs{suffix}"))
    assert [job.id for job in jobs] == ["000001", "hills", "7"]
    first, second, third = (job.request for job in jobs if isinstance(job, Job))
    assert (first.prompt, first.width, first.height, first.seed) == ("a red sunset, over the sea", 384, 192, 5)
    assert (second.guidance, second.temperature, second.seed) == (4.5, 0, default_seed("hills"))
    assert (third.label, third.top_p, third.context) == (3, 0.9, "recompute")
    assert third.negative_prompt == "007"


def test_seeds_depend_on_the_id_alone() -> None:
    assert default_seed("a") == default_seed("a") != default_seed("b")
    assert all(0 <= default_seed(str(i)) < 2**31 for i in range(100))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"promt": "x"}', "did you mean 'prompt'"),
        ('{"prompt": "x", "size": "wide"}', "expected WIDTHxHEIGHT"),
        ('{"prompt": "x", "size": "384x192", "width": 384}', "give either"),
        ('{"prompt": "x", "id": "../up"}', "id is '../up'"),
        ('{"prompt": "x", "id": "good"}', "that of job 1"),
        ('{"features": "none.npy"}', "does not exist"),
        ('{"features": 3}', "expected the path"),
        ('{"prompt": "x", "id": "good.error"}', "no .error at the end"),
        ('{"prompt": "x", "size": "' + 5000 * "9" + 'x192"}', "expected WIDTHxHEIGHT"),
        (5000 * "[", "not JSON"),
    ],
)
def test_a_bad_line_is_reported_and_the_others_are_read(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(f'{{"prompt": "a", "id": "good"}}\n{line}\n{{"prompt": "b"}}\n', encoding="utf-8")
    first, bad, last = read_jobs(path)
    assert isinstance(first, Job) and isinstance(last, Job) and (first.id, last.id) == ("good", "000003")
    assert isinstance(bad, BadJob) and message in bad.error and bad.number == 2 and bad.id not in ("good", "000003")


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    prompts = ["a\u2028b", "c\u0085d", "e\u2029f"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "jobs.jsonl").write_bytes("\r\n".join(lines).encode())
    jobs = read_jobs(tmp_path / "jobs.jsonl")
    assert [job.request.prompt for job in jobs if isinstance(job, Job)] == prompts


def test_a_bad_line_has_an_id_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "a", "id": "000002"}\n{"prompt": "b"}\n{"oops": 1, "id": "000002"}\n', encoding="utf-8")
    jobs = read_jobs(path)
    assert isinstance(jobs[0], Job) and all(isinstance(job, BadJob) for job in jobs[1:])
    assert len({job.id for job in jobs}) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"junk"])
def test_a_features_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.npy").write_bytes(content)
    (tmp_path / "jobs.jsonl").write_text('{"features": "f.npy"}', encoding="utf-8")
    [job] = read_jobs(tmp_path / "jobs.jsonl")
    assert isinstance(job, BadJob) and "cannot be read" in job.error


def test_features_are_read_beside_the_jobs_file(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones((3, 8), np.float32))
    (tmp_path / "jobs.jsonl").write_text('{"features": "f.npy"}', encoding="utf-8")
    [job] = read_jobs(tmp_path / "jobs.jsonl")
    assert isinstance(job, Job) and job.request.features is not None
    assert tuple(job.request.features.shape) == (3, 8) and job.features == tmp_path / "f.npy"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("jobs.txt", "x", "must end in"),
        ("jobs.jsonl", "", "holds no jobs"),
        ("jobs.yaml", "a: 1", "expected a list"),
        ("jobs.yaml", "a: [", "not YAML"),
        ("gone.jsonl", None, "does not exist"),
        ("jobs.yaml", "- prompt: 2024-13-45", "not YAML"),
        ("jobs.csv", 'id,prompt\n1,"abc\n2,def\n3,ghi\n', "not CSV"),
        ("jobs.csv", "prompt\n" + 140_000 * "x", "not CSV"),
    ],
)
def test_a_file_that_is_no_jobs_file_is_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=message):
        read_jobs(tmp_path / name)
