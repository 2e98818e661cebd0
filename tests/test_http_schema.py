"""schemathesis on our routes: what /openapi.json says of them is so, and nothing that it makes up gets a 500.

Everything is real but the engine (fake_service.py). What depends on the model (sizes, strides, classes) is not in the
schema, so a body that it allows may be refused; one that it forbids may not be taken.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fake_service import fake_app, running_app
from fastapi import FastAPI
from hypothesis import HealthCheck, assume, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tiny_folder import TINY_CONFIG, WORDS, write_tiny_folder

from panoserve.serve.http.edits import EDIT_FIELDS
from panoserve.serve.http.endless import ENDLESS_FIELDS, STEER_FIELDS
from panoserve.serve.http.fields import FIELDS
from panoserve.serve.http.openapi import FILES
from panoserve.serve.http.routes import router

REFUSED = {"mode", "complexity", "frame_count", "frame_duration_ms", "svg", "markup"}  # whatever they hold
CROP = TINY_CONFIG.grid.crop_pixels
EXAMPLES = int(os.environ.get("PANOSERVE_FUZZ_EXAMPLES", "25"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def described() -> dict[str, Any]:
    app = FastAPI()
    app.include_router(router)
    described = app.openapi()
    for route in (route for routes in described["paths"].values() for route in routes.values()):
        route.pop("security", None)  # the key is vLLM's to check
    return described


OPENAPI = described()
NOT_CHECKED = [positive_data_acceptance]
SCHEMA = schemathesis.openapi.from_dict(OPENAPI)
ENDING = SCHEMA.exclude(path="/v1/images/endless")  # whose streams have no end


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_tiny_folder(tmp_path_factory.mktemp("schema") / "tiny")
    with running_app(fake_app(folder, max_queue_codes=600)) as url:
        yield url


@ENDING.parametrize()
@FUZZ
def test_anything(case: Case, url: str) -> None:
    """Bodies that the schema allows and forbids, other methods, other types: answers are those that it describes."""
    case.call_and_validate(base_url=url, excluded_checks=NOT_CHECKED)


@pytest.fixture(scope="module")
def statuses() -> Iterator[Counter[int]]:
    counted: Counter[int] = Counter()
    yield counted
    assert counted[200] >= EXAMPLES // 5, f"hardly a body was good enough to be drawn: {counted}"


@pytest.mark.parametrize("stream", [False, True])
@SCHEMA.include(path="/v1/images/generations").parametrize()
@FUZZ
def test_bodies_that_can_be_drawn(case: Case, url: str, statuses: Counter[int], stream: bool) -> None:
    """Bodies that the schema allows, with a model, a prompt and a size that are there, so that most are drawn; of
    streams, each event is checked.
    """
    assume(case.meta.generation.mode is GenerationMode.POSITIVE and isinstance(case.body, dict))
    width = CROP * (1 + len(case.body) % 3)
    case.body |= {"model": None, "prompt": WORDS[0], "label": None, "size": f"{width}x{CROP}"}
    case.body |= {"prompts": None, "output_compression": None, "stride": None, "row_stride": None}
    case.body |= {"n": 1, "stream": True, "partial_images": 2, "response_format": "b64_json"} if stream else {}
    statuses[case.call_and_validate(base_url=url, excluded_checks=NOT_CHECKED).status_code] += 1


@SCHEMA.include(path="/v1/images/endless").parametrize()
@FUZZ
def test_endless_panoramas_that_end(case: Case, url: str) -> None:
    """Likewise, with a limit in pixels; each event is checked."""
    assume(case.meta.generation.mode is GenerationMode.POSITIVE and isinstance(case.body, dict))
    case.body = {name: case.body[name] for name in ("output_format", "temperature", "top_p") if name in case.body}
    case.body |= {"prompt": WORDS[0], "direction": "right", "height": CROP, "limit": 3 * CROP, "crops": 2}
    assert case.call_and_validate(base_url=url, excluded_checks=NOT_CHECKED).status_code == 200


def test_every_field_is_described() -> None:
    for path, fields, media_type in (
        ("generations", FIELDS, "application/json"),
        ("edits", EDIT_FIELDS | dict.fromkeys(FILES), "multipart/form-data"),
        ("endless", ENDLESS_FIELDS, "application/json"),
        ("endless/{name}/steer", STEER_FIELDS, "application/json"),
    ):
        refused = REFUSED | {"loop"} if path == "endless" else REFUSED
        body = OPENAPI["paths"][f"/v1/images/{path}"]["post"]["requestBody"]["content"][media_type]["schema"]
        assert set(body["properties"]) == {name for name in fields if name not in refused}
        assert body["additionalProperties"] is False


def test_answers_are_errors_of_ours_and_never_fastapis_own() -> None:
    for routes in OPENAPI["paths"].values():
        for route in routes.values():
            assert {"4XX", "5XX"} <= set(route["responses"]) and "422" not in route["responses"]
