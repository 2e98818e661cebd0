"""The answer to a missing or wrong API key, over vLLM's own check of it."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from panoserve.serve.http.middleware import OpenAIErrors


@pytest.fixture
def app() -> FastAPI:
    """As vLLM puts its middleware together: ours comes last, which is outermost."""
    app = FastAPI()
    app.add_api_route("/v1/images/generations", lambda: {"data": []}, methods=["POST"])
    app.add_api_route("/health", lambda: "ok")
    app.add_middleware(AuthenticationMiddleware, tokens=["secret"])
    app.add_middleware(OpenAIErrors)
    return app


@pytest.mark.parametrize(
    ("headers", "words"), [({}, "no API key"), ({"Authorization": "Bearer wrong"}, "is not known")]
)
def test_a_key_that_does_not_fit(app: FastAPI, headers: dict[str, str], words: str) -> None:
    response = TestClient(app).post("/v1/images/generations", headers=headers | {"X-Request-Id": "mine"})
    assert response.status_code == 401
    error: dict[str, Any] = response.json()["error"]
    assert words in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    assert (response.headers["www-authenticate"], response.headers["x-request-id"]) == ("Bearer", "mine")


def test_other_answers_pass(app: FastAPI) -> None:
    with TestClient(app) as client:  # with the lifespan, which is no request
        assert client.post("/v1/images/generations", headers={"Authorization": "Bearer secret"}).json() == {"data": []}
        assert client.get("/health").status_code == 200
        assert client.get("/nothing").status_code == 404


def test_openais_client_reads_it(app: FastAPI) -> None:
    client = OpenAI(api_key="wrong", base_url="http://testserver/v1", http_client=TestClient(app), max_retries=0)  # type: ignore[arg-type]
    with pytest.raises(openai.AuthenticationError) as caught:
        client.images.generate(prompt="a sea")
    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
