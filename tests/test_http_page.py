"""The page, used as a person would use it, in a real browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import pytest
from browser import CHROMIUM, Page, browser_page
from http_server import Server
from PIL import Image
from tiny_folder import TINY_CONFIG

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian's package: chromium)"),
]

CROP = TINY_CONFIG.grid.crop_pixels
PICTURE = "document.getElementById('picture')"
FINISHED = "document.getElementById('draw').disabled === false"


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(autouse=True)
def without_errors(page: Page) -> Iterator[None]:
    """Nothing is thrown, and nothing is refused by the content security policy."""
    page.errors.clear()
    yield
    assert page.errors == []


def draw(page: Page, prompt: str, **values: object) -> None:
    """Fill in the form by keyboard and draw with Ctrl+Enter."""
    for name, value in values.items():
        page.run(f"document.getElementById('{name}').value = {str(value)!r}")
    page.run("document.getElementById('prompt').focus()")
    page.type(prompt)
    page.key("Enter", control=True)


def test_it_paints_and_remembers(page: Page, server: Server) -> None:
    page.open(server.url)
    page.run(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('status').textContent))"
        ".observe(document.getElementById('status'), {childList: true})"
    )
    draw(page, "a red sky", width=3 * CROP, height=CROP, seed=5)
    page.wait("document.querySelector('#history li')")
    assert page.run(f"[{PICTURE}.naturalWidth, {PICTURE}.naturalHeight, {PICTURE}.hidden]") == [3 * CROP, CROP, False]
    assert any(text.startswith("Row ") for text in page.run("seen"))
    assert f"{3 * CROP}x{CROP}, seed 5" in page.text("#status")
    assert page.run("document.getElementById('download').download") == "panorama-5.png"
    body = page.run("JSON.parse(document.querySelector('pre').textContent)")
    with server.http() as http:
        drawn = http.post("/v1/images/generations", json=body)
    again = Image.open(io.BytesIO(base64.b64decode(drawn.json()["data"][0]["b64_json"]))).convert("RGBA")
    shown = page.run(
        f"(() => {{ const g = new OffscreenCanvas({again.width}, {again.height}).getContext('2d'); "
        f"g.drawImage({PICTURE}, 0, 0); return [...g.getImageData(0, 0, {again.width}, {again.height}).data]; }})()"
    )
    assert bytes(shown) == again.tobytes(), "the remembered request draws another picture"


def test_it_stops(page: Page, server: Server) -> None:
    page.open(server.url)
    aborted = server.metric('panoserve_panoramas_total{outcome="aborted"}')
    draw(page, "a sea", width=40 * CROP, height=CROP)
    page.wait("document.getElementById('status').textContent.startsWith('Row')")
    page.key("Escape")
    page.wait(FINISHED)
    assert page.text("#status") == "Stopped."
    page.wait(f"fetch('/metrics').then(r => r.text()).then(t => t.includes('outcome=\"aborted\"}} {aborted + 1}'))", 20)


def test_errors_are_shown(page: Page, server: Server) -> None:
    page.open(server.url)
    draw(page, " ", width=CROP, height=CROP)
    page.wait("document.getElementById('status').classList.contains('bad')")
    assert "some text" in page.text("#status")
    page.errors.clear()  # the browser itself reports the status 400


def test_the_viewer_zooms_and_moves(page: Page, server: Server) -> None:
    page.open(server.url)
    draw(page, "a sea", width=6 * CROP, height=CROP, seed=1)
    page.wait("document.querySelector('#history li')")
    fitted = page.run("[view.scale, view.x]")
    page.run("document.getElementById('viewer').focus()")
    for _ in range(3):
        page.key("+")
    assert page.run("view.scale") == pytest.approx(fitted[0] * 1.25**3)
    before = page.run("view.x")
    page.key("ArrowRight")
    assert page.run("view.x") == pytest.approx(before - 80)
    x, y, width, height = page.run(
        "(r => [r.x, r.y, r.width, r.height])(document.getElementById('viewer').getBoundingClientRect())"
    )
    page.drag((x + width / 2, y + height / 2), (x + width / 2 + 50, y + height / 2))
    assert page.run("view.x") == pytest.approx(before - 30)
    page.key("0")
    assert page.run("[view.scale, view.x]") == pytest.approx(fitted)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_window_in_both_themes(page: Page, server: Server, width: int, dark: bool) -> None:
    page.open(server.url, width=width, height=844, dark=dark)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    back, ink = (page.run(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    levels = [sum(int(level) for level in colour.strip("rgb()").split(",")) for colour in (back, ink)]
    assert (levels[0] < levels[1]) == dark and abs(levels[0] - levels[1]) > 400


def test_every_control_can_be_named(page: Page, server: Server) -> None:
    """By a screen reader: from its label, its text or its aria-label."""
    page.open(server.url)
    nameless = page.run(
        "[...document.querySelectorAll('button, input, select, textarea, a')].filter(e => "
        "!(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.id)"
    )
    assert nameless == []
