"""The page's files: sent as they are committed, complete, and with nothing from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from panoserve.serve.http.page_routes import path_of, router

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "serve" / "http" / "page"
NAMES = sorted(path.name for path in PAGE.iterdir())
LIBRARY = ("pannellum.js", "pannellum.css", "pannellum.license.txt")
OURS = [name for name in NAMES if name not in LIBRARY]


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_sent_as_it_is_committed(client: TestClient, name: str) -> None:
    response = client.get(path_of(name))
    assert response.status_code == 200 and response.content == (PAGE / name).read_bytes()
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "txt": "text/plain"}
    assert response.headers["content-type"].startswith(kind[name.rpartition(".")[2]])
    assert "unsafe" not in response.headers["content-security-policy"]


@pytest.mark.parametrize("name", OURS)
def test_what_it_refers_to_is_there(name: str) -> None:
    text = (PAGE / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|\bunpkg\b|\bcdn\b", text), "the page takes nothing from elsewhere"
    if name.endswith(".html"):
        referred = re.findall(r'(?:src|href)="page/([^"]+)"', text)
    else:
        referred = re.findall(r'(?:from|import\(|import) ?"\./([^"]+)"', text)
    assert set(referred) <= set(NAMES)
    assert referred or name in ("dom.js", "page.css")


def test_the_library_is_the_locked_one_with_its_licence() -> None:
    lock = json.loads((ROOT / "requirements" / "page" / "package-lock.json").read_text(encoding="utf-8"))
    locked = lock["packages"]["node_modules/pannellum"]
    wanted = json.loads((ROOT / "requirements" / "page" / "package.json").read_text(encoding="utf-8"))
    assert wanted["dependencies"] == {"pannellum": locked["version"]}
    assert locked["integrity"] and locked["license"] == "MIT"
    for name in ("pannellum.js", "pannellum.css"):
        assert f"Pannellum {locked['version']}," in (PAGE / name).read_text(encoding="utf-8")[:80], "run `make page`"
    assert "Matthew Petroff" in (PAGE / "pannellum.license.txt").read_text(encoding="utf-8")
    assert "resolved" not in json.dumps(lock), "a registry's address does not belong into the repository"
