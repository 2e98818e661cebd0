"""A headless Chromium, driven by Playwright: the gestures that our page's tests make."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import playwright.sync_api as playwright
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL, no card


class Page:
    """One tab. `errors` collects what the page throws or writes to console.error."""

    def __init__(self, tab: playwright.Page) -> None:
        self.tab = tab
        self.errors: list[str] = []
        tab.set_default_timeout(120_000)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self.resize(width, height)
        self.tab.emulate_media(color_scheme="dark" if dark else "light")
        self.tab.goto(url)
        self.wait("document.readyState === 'complete' && document.getElementById('width').value !== ''")

    def resize(self, width: int, height: int) -> None:
        self.tab.set_viewport_size({"width": width, "height": height})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, or of the last of several statements."""
        return self.tab.evaluate(script)

    def wait(self, condition: str, seconds: float = 120) -> None:
        """Wait until a JavaScript expression is true."""
        try:
            self.tab.wait_for_function(f"() => Boolean({condition})", polling=200, timeout=1000 * seconds)
        except playwright.TimeoutError:
            raise AssertionError(f"waited in vain for {condition}; status: {self.text('#status')!r}") from None

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.textContent"))

    def click(self, selector: str) -> None:
        """With the mouse, where the element is."""
        self.tab.click(selector)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.tab.mouse
        mouse.move(*start)
        mouse.down()
        mouse.move(*end, steps=2)
        mouse.up()

    def key(self, key: str, *, control: bool = False) -> None:
        self.tab.keyboard.press(f"Control+{key}" if control else key)

    def type(self, text: str) -> None:
        self.tab.keyboard.insert_text(text)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element on the screen, in pixels."""
        element = f"document.querySelector({json.dumps(selector)})"
        x, y, width, height = self.run(f"(r => [r.x, r.y, r.width, r.height])({element}.getBoundingClientRect())")
        return x, y, width, height

    def screenshot(self) -> Image.Image:
        """What the window shows now."""
        return Image.open(io.BytesIO(self.tab.screenshot())).convert("RGB")


@contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """A fresh Chromium with one empty tab; `profile` is a folder for it to write to."""
    assert CHROMIUM is not None
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, headless=True
        )
        yield Page(context.pages[0])
        context.close()
