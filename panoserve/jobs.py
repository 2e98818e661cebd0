"""Files of many requests: JSON Lines, CSV or YAML in, jobs out, with an error for every line that is wrong.

A job is the fields of PanoramaRequest, and besides: `id` (names its files; default: its number in the file), `size`
("1152x192", instead of width and height), and `features` as the path of a file, relative to the jobs file.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from panoserve.cli_files import load_features
from panoserve.errors import InvalidRequestError
from panoserve.serve.request import PanoramaRequest

FORMATS = (".jsonl", ".ndjson", ".csv", ".yaml", ".yml")
_REQUEST_FIELDS = tuple(field.name for field in fields(PanoramaRequest) if field.name != "part")
_FIELDS = ("id", "size", *_REQUEST_FIELDS)
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request of a file. `number` counts from 1; `features` is where the request's features came from."""

    number: int
    id: str
    request: PanoramaRequest
    features: Path | None


@dataclass(frozen=True, slots=True)
class BadJob:
    """A line that is no request, and why."""

    number: int
    id: str
    error: str


def read_jobs(path: Path) -> list[Job | BadJob]:
    """Every job of a file, in its order. Raises InvalidRequestError if the file as a whole cannot be read."""
    if path.suffix.lower() not in FORMATS:
        raise InvalidRequestError(f"jobs file {path} must end in one of {', '.join(FORMATS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InvalidRequestError(f"jobs file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"jobs file {path} cannot be read: {error}") from None
    jobs: list[Job | BadJob] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(_rows(path, text), start=1):
        name = f"{number:06d}"
        try:
            if isinstance(row, str):
                raise InvalidRequestError(row)
            name = _id_of(row, name)
            if name in seen:
                raise InvalidRequestError(f"id {name!r} is that of job {seen[name]} already; ids name files")
            job = _job(row, number, name, path.parent)
        except InvalidRequestError as error:
            # Not another job's name, whose files are not to be mistaken for this one's.
            names = (name, f"{number:06d}", *(f"{number:06d}-{again}" for again in range(len(seen))))
            jobs.append(BadJob(number, next(name for name in names if name not in seen), str(error)))
        else:
            jobs.append(job)
        seen.setdefault(jobs[-1].id, number)
    if not jobs:
        raise InvalidRequestError(f"jobs file {path} holds no jobs")
    return jobs


def default_seed(name: str) -> int:
    """The seed of a job that names none: always the same for the same id, so that a job can be repeated."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1


def _rows(path: Path, text: str) -> Iterator[dict[str, Any] | str]:
    """The mapping of every job, or what is wrong with its line."""
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from _csv_rows(path, text)
    elif kind in (".yaml", ".yml"):
        yield from _yaml_rows(path, text)
    else:
        for line in text.split("\n"):  # str.splitlines would also cut at other characters, which texts may hold
            if line.strip():
                yield _json_row(line)


def _json_row(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {error}"
    return row if isinstance(row, dict) else f"the line is {line[:40]!r}, expected a JSON object"


def _csv_rows(path: Path, text: str) -> Iterator[dict[str, Any] | str]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                yield f"the line has more values than the {len(reader.fieldnames or ())} columns of the header"
            else:
                yield {name: _parse_cell(name, value) for name, value in row.items() if value not in (None, "")}
    except csv.Error as error:
        raise InvalidRequestError(
            f"jobs file {path} is not CSV, at or before line {reader.line_num}: {error}"
        ) from None


def _yaml_rows(path: Path, text: str) -> Iterator[dict[str, Any] | str]:
    import yaml

    try:
        rows = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise InvalidRequestError(f"jobs file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(rows, list):
        raise InvalidRequestError(f"jobs file {path} holds a {type(rows).__name__}, expected a list of jobs")
    for row in rows:
        yield row if isinstance(row, dict) else f"the entry is {row!r}, expected a mapping"


def _parse_cell(name: str, value: str) -> Any:
    """A CSV cell: text columns as they are, anything else as JSON would have it."""
    if name in ("id", "prompt", "negative_prompt", "size", "context", "features"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _id_of(row: dict[str, Any], default: str) -> str:
    name = row.get("id", default)
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(name, str) or not _ID.fullmatch(name) or name.endswith(".error"):
        raise InvalidRequestError(
            f"id is {name!r}; expected up to 100 letters, digits, dots, dashes and underscores, no dot first and no "
            ".error at the end"
        )
    return name


def _job(row: dict[str, Any], number: int, name: str, folder: Path) -> Job:
    for key in row:
        if key not in _FIELDS:
            near = difflib.get_close_matches(str(key), _FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields are {', '.join(_FIELDS)}"
            raise InvalidRequestError(f"unknown field {key!r}{hint}")
    values = {key: value for key, value in row.items() if key in _REQUEST_FIELDS and value is not None}
    if "size" in row:
        if "width" in row or "height" in row:
            raise InvalidRequestError("size stands for width and height; give either", "size")
        values["width"], values["height"] = _size(row["size"])
    features = None
    if "features" in values:
        if not isinstance(values["features"], str):
            raise InvalidRequestError(f"features is {values['features']!r}; expected the path of a file", "features")
        features = folder / values["features"]
        values["features"] = load_features(features)
    values.setdefault("seed", default_seed(name))
    return Job(number, name, PanoramaRequest(**values), features)


def _size(value: Any) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,10})[xX](\d{1,10})", value) if isinstance(value, str) else None
    if found is None:
        raise InvalidRequestError(f"size is {value!r}; expected WIDTHxHEIGHT in pixels, such as '1152x192'", "size")
    return int(found[1]), int(found[2])
