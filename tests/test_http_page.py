"""The page, used as a person would use it, in a real browser."""

from __future__ import annotations

import base64
import io
import math
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
VIEW = "import('/page/flat.js').then(m => [m.view.scale, m.view.x])"
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
    fitted = page.run(VIEW)
    page.run("document.getElementById('viewer').focus()")
    for _ in range(3):
        page.key("+")
    zoomed, before = page.run(VIEW)
    assert zoomed == pytest.approx(fitted[0] * 1.25**3)
    page.key("ArrowRight")
    assert page.run(VIEW)[1] == pytest.approx(before - 80)
    x, y, width, height = page.box("#viewer")
    page.drag((x + width / 2, y + height / 2), (x + width / 2 + 50, y + height / 2))
    assert page.run(VIEW)[1] == pytest.approx(before - 30)
    page.key("0")
    assert page.run(VIEW) == pytest.approx(fitted)
    assert page.run("document.getElementById('all-around').hidden"), "there is no view all around in what is no loop"


OPEN_AROUND = """
(async () => {
  const picture = document.createElement('canvas');
  [picture.width, picture.height] = [1024, 256];
  const paint = picture.getContext('2d'), pixels = paint.createImageData(1024, 256);
  for (let i = 0; i < 1024 * 256; i += 1) pixels.data.set([(i % 1024) / 4, Math.floor(i / 1024), 128, 255], 4 * i);
  paint.putImageData(pixels, 0, 0);
  document.getElementById('viewer').hidden = !(document.getElementById('around').hidden = false);
  window.opened = await (await import('/page/around.js')).openAround(document.getElementById('around'), picture);
  return opened.view.getHfov();
})()
"""


def test_the_view_all_around_is_that_of_a_cylinder(page: Page, server: Server) -> None:
    """A picture whose colours say where they are, seen from the axis of the cylinder that it is."""
    page.open(server.url)
    across = math.radians(page.run(OPEN_AROUND))
    x, y, width, height = page.box("#around")
    focal = width / 2 / math.tan(across / 2)
    radius = 1024 / (2 * math.pi)
    seen = page.screenshot()
    for right in (-0.45, -0.2, 0.0, 0.3, 0.48):
        for down in (-0.48, -0.25, 0.0, 0.4):
            turn = math.atan(right * width / focal)
            below = down * height / focal * math.cos(turn)  # tangent of the angle below the horizon
            expected = ((512 + radius * turn) / 4, 128 + radius * below)
            pixel = seen.getpixel((round(x + (0.5 + right) * width), round(y + (0.5 + down) * height)))
            assert pixel[:2] == pytest.approx(expected, abs=3), (right, down)
    page.run("opened.close()")


def test_a_loop_is_looked_at_from_inside(page: Page, server: Server) -> None:
    page.open(server.url)
    page.run("document.getElementById('loop').checked = true")
    draw(page, "a sea", width=4 * CROP, height=CROP, seed=1)
    page.wait("document.querySelector('#history li')")
    look = "import('/page/viewer.js').then(m => [m.around.view.getYaw(), m.around.view.getHfov()])"
    pressed = "document.getElementById('all-around').getAttribute('aria-pressed') === 'true'"
    page.click("#all-around")
    page.wait(pressed)
    assert page.run("[document.getElementById('viewer').hidden, document.getElementById('around').hidden]") == [
        True,
        False,
    ]
    yaw, across = page.run(look)
    x, y, width, height = page.box("#around")
    page.drag((x + width / 2, y + height / 2), (x + width / 2 - 100, y + height / 2))
    page.wait(f"{look}.then(([yaw]) => yaw > {yaw} + 5)")
    page.click("#zoom-in")
    page.wait(f"{look}.then(([, across]) => across < {across} / 1.4)")
    page.run("document.getElementById('around').focus()")
    page.key("0")
    assert page.run(look) == pytest.approx([0, across], abs=1)
    page.resize(500, 300)
    page.wait("innerWidth === 500")
    page.resize(1200, 900)
    page.wait(f"{look}.then(([, now]) => Math.abs(now - {across}) < 1)")
    page.click("#all-around")
    page.wait(f"!({pressed})")
    assert page.run("[document.getElementById('viewer').hidden, document.getElementById('around').hidden]") == [
        False,
        True,
    ]


def test_without_webgl_the_flat_view_stays(page: Page, server: Server) -> None:
    page.open(server.url)
    page.run("HTMLCanvasElement.prototype.getContext = () => null")
    page.run("document.getElementById('all-around').hidden = false; document.getElementById('all-around').click()")
    page.wait("document.getElementById('status').classList.contains('bad')")
    assert "WebGL" in page.text("#status")
    assert page.run("[document.getElementById('viewer').hidden, document.getElementById('around').hidden]") == [
        False,
        True,
    ]


def test_prompts_are_placed_by_markers(page: Page, server: Server) -> None:
    page.open(server.url)
    markers = "document.querySelectorAll('.marker')"
    values = f"[...{markers}].map(m => [m.ariaLabel, m.ariaValueNow, m.ariaValueText])"
    page.click("#add-marker")
    page.type("a red sky")
    assert page.run(values) == [["Place of prompt 1", "50", "50 % from the left"]]
    left, top, width, height = page.box("#strip")
    page.drag((left + width / 2, top + height / 2), (left + 0.8 * width, top + height / 2))
    assert page.run(values)[0][1] == "80"
    page.click("#strip")  # in its middle, where there is no marker
    page.type("the night")
    page.run(f"{markers}[1].focus()")
    for _ in range(3):
        page.key("ArrowLeft")
    assert page.run(values)[1] == ["Place of prompt 2", "47", "47 % from the left"]
    page.click("#add-marker")
    page.run(f"{markers}[2].focus()")
    page.key("Delete")
    assert len(page.run(values)) == 2
    page.run("document.getElementById('negative').value = 'a boat'")
    draw(page, "a blue sea", width=6 * CROP, height=CROP, seed=2)
    page.wait("document.querySelector('#history li')")
    body = page.run("JSON.parse(document.querySelector('pre').textContent)")
    assert body["prompts"] == [{"prompt": "the night", "left": 0.47}, {"prompt": "a red sky", "left": 0.8}]
    assert body["prompt"] == "a blue sea" and body["negative_prompt"] == "a boat"
    assert page.text(".caption") == "a blue sea · the night · a red sky"
    page.click(".remove")
    page.click(".remove")
    assert page.run("document.getElementById('strip').hidden")
    page.click(".again")
    assert [value for _, value, _ in page.run(values)] == ["47", "80"]
    page.run("document.getElementById('prompt').value = ''")
    again = page.run("import('/page/form.js').then(m => m.requestBody())")
    assert "prompt" not in again and again["prompts"] == body["prompts"]


def test_a_class_conditional_model_is_asked_for_a_class(page: Page, server: Server) -> None:
    page.open(server.url)
    page.click("#add-marker")
    body = page.run(
        "(async () => { const real = await (await fetch('/v1/images/options')).json();"
        "window.fetch = async () => new Response(JSON.stringify({...real, condition: 'class', classes: 10}));"
        "const form = await import('/page/form.js'); await form.loadOptions(); return form.requestBody(); })()"
    )
    assert body["label"] == 0 and body["prompt"] == "" and "prompts" not in body
    for name in ("prompt-field", "along", "negative-field"):
        assert page.run(f"document.getElementById('{name}').hidden"), name


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_window_in_both_themes(page: Page, server: Server, width: int, dark: bool) -> None:
    page.open(server.url, width=width, height=844, dark=dark)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    back, ink = (page.run(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    levels = [sum(int(level) for level in colour.strip("rgb()").split(",")) for colour in (back, ink)]
    assert (levels[0] < levels[1]) == dark and abs(levels[0] - levels[1]) > 400
    page.run("document.getElementById('all-around').hidden = false")  # as for a loop
    tools = "[...document.querySelectorAll('.tools > *')].map(tool => tool.getBoundingClientRect().right)"
    assert page.run(f"Math.max(...{tools}) <= document.querySelector('.stage').getBoundingClientRect().right")


def test_every_control_can_be_named(page: Page, server: Server) -> None:
    """By a screen reader: from its label, its text or its aria-label."""
    page.open(server.url)
    nameless = page.run(
        "[...document.querySelectorAll('button, input, select, textarea, a')].filter(e => "
        "!(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.id)"
    )
    assert nameless == []
