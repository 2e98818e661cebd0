"""The page without an end, blending, and in full screen, in a real browser; only the engine is not real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from browser import CHROMIUM, Page, browser_page
from fake_service import FakeClient, fake_app, running_app
from fastapi import FastAPI
from tiny_folder import TINY_CONFIG, write_tiny_folder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian's package: chromium)")

CROP = TINY_CONFIG.grid.crop_pixels
VIEW = "import('/page/flat.js').then(m => [m.view.scale, m.view.x, m.view.width])"
WIDTH = "document.getElementById('picture').naturalWidth"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return fake_app(write_tiny_folder(tmp_path_factory.mktemp("page") / "tiny"), FakeClient(pause=0.02))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with running_app(app) as url:
        yield url


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def begin(page: Page, url: str, **size: int) -> None:
    page.open(url, **size)
    page.errors.clear()
    page.run(f"document.getElementById('height').value = {CROP}; document.getElementById('prompt').value = 'a red sky'")
    page.click("#endless")
    page.wait(f"{WIDTH} > 0")


def stop(page: Page) -> dict[str, Any]:
    """Stop, and the request that is remembered."""
    page.key("Escape")
    page.wait("document.querySelector('#history li')")
    body: dict[str, Any] = page.run("JSON.parse(document.querySelector('pre').textContent)")
    return body


def test_it_grows_is_steered_and_stops(page: Page, url: str, app: FastAPI) -> None:
    begin(page, url)
    assert page.run("document.getElementById('draw').disabled && document.getElementById('endless').disabled")
    page.wait(f"{WIDTH} > {7 * CROP}")  # wider than the viewer
    scale, left, width = page.run(VIEW)
    room = page.box("#viewer")[2]
    assert width * scale > room and left == pytest.approx(room - width * scale, abs=1), "its end is what is seen"
    page.run("document.getElementById('prompt').value = 'the night'")
    page.click("#steer")
    page.wait("document.getElementById('status').textContent.includes('the night')")
    grown = page.run(WIDTH)
    page.wait(f"{WIDTH} > {grown}")
    body = stop(page)
    assert page.text("#status").startswith(f"Stopped at {page.run(WIDTH)}x{CROP}, seed {body['seed']}")
    assert body["limit"] == page.run(WIDTH) and body["height"] == CROP and body["prompt"] == "a red sky"
    [steered] = body["prompts"]
    assert steered["prompt"] == "the night" and steered["left"] > 0
    assert page.run("document.getElementById('steer').hidden && !document.getElementById('endless').disabled")
    assert page.run("document.getElementById('download').download") == f"endless-{body['seed']}.png"
    deadline = time.monotonic() + 30
    while app.state.panoserve.endless._running:
        assert time.monotonic() < deadline, "the drawing goes on without a reader"
        time.sleep(0.05)
    page.click(".again")
    assert page.run("document.getElementById('seed').value") == str(body["seed"])
    assert page.errors == []


def test_what_somebody_looks_at_stays(page: Page, url: str) -> None:
    """Who has moved away from the end is not taken back to it."""
    begin(page, url)
    page.wait(f"{WIDTH} > {7 * CROP}")
    page.run("document.getElementById('viewer').focus()")
    for _ in range(40):
        page.key("ArrowLeft")
    width, (_, left, _) = page.run(WIDTH), page.run(VIEW)
    page.wait(f"{WIDTH} > {width}")
    assert page.run(VIEW)[1] == left == 0
    stop(page)


def test_markers_are_places_in_pixels(page: Page, url: str) -> None:
    page.open(url)
    body = page.run(
        "import('/page/endless.js').then(m => m.endlessBody({size: '400x32', loop: true, prompt: 'a', blend: 9,"
        " prompts: [{prompt: 'b', left: 0.5}]}))"
    )
    assert body == {"prompt": "a", "blend": 9, "prompts": [{"prompt": "b", "left": 200}], "height": 32, "crops": 2}


def test_errors_are_shown(page: Page, url: str) -> None:
    page.open(url)
    page.run(f"document.getElementById('height').value = {CROP - 4}; document.getElementById('prompt').value = 'a'")
    page.click("#endless")
    page.wait("document.getElementById('status').classList.contains('bad')")
    assert "at least one crop" in page.text("#status")
    assert not page.run("document.getElementById('endless').disabled")


def test_prompts_are_blended(page: Page, url: str) -> None:
    page.open(url)
    assert page.run("document.getElementById('blend-field').hidden")
    page.click("#add-marker")
    page.type("the night")
    page.run("document.getElementById('prompt').value = 'a sea'; document.getElementById('blend').value = '40'")
    body = page.run("import('/page/form.js').then(m => m.requestBody())")
    assert body["blend"] == 40 and len(body["prompts"]) == 1
    page.click(".remove")
    assert "blend" not in page.run("import('/page/form.js').then(m => m.requestBody())")
    assert page.run("document.getElementById('blend-field').hidden")


def test_full_screen(page: Page, url: str) -> None:
    """A headless browser has a screen as well: the stage takes all of it, and the viewer what the bar leaves."""
    page.open(url)
    page.click("#full")
    page.wait("document.fullscreenElement?.className === 'stage'")
    page.wait("document.getElementById('full').getAttribute('aria-pressed') === 'true'")
    _, _, width, height = page.box("#viewer")
    assert width == pytest.approx(page.run("innerWidth"), abs=1)
    assert height > 0.7 * page.run("innerHeight")
    page.run("document.getElementById('viewer').focus()")
    page.key("f")
    page.wait("document.fullscreenElement === null")
    page.wait("document.getElementById('full').getAttribute('aria-pressed') === 'false'")


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_window_while_it_grows(page: Page, url: str, width: int) -> None:
    begin(page, url, width=width, height=844)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("!document.getElementById('steer').hidden")
    stop(page)
