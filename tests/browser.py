"""A headless Chromium, driven over its DevTools protocol: just enough to use our page as a person would."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from panoserve.benchmarks.own_server import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--mute-audio")
FLAGS += ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL without a graphics card


class Page:
    """One tab. `errors` collects what the page throws or writes to console.error."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last_id = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One DevTools command and its result."""
        self._last_id += 1
        self._socket.send(json.dumps({"id": self._last_id, "method": method, "params": arguments}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            parameters = message.get("params", {})
            if (
                message.get("method") == "Runtime.exceptionThrown"
                or parameters.get("entry", {}).get("level") == "error"
            ):
                self.errors.append(json.dumps(parameters))
            if message.get("id") == self._last_id:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.getElementById('width').value !== ''")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 120) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"waited in vain for {condition}; status: {self.text('#status')!r}"
            time.sleep(0.2)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.textContent"))

    def click(self, selector: str) -> None:
        """With the mouse, where the element is."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        box = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], button="left", clickCount=1)
        for x, y in (((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), end):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], button="left", clickCount=1)

    def key(self, key: str, *, control: bool = False) -> None:
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Delete": 46}
        stroke: dict[str, Any] = {"key": key, "modifiers": 2 if control else 0}
        stroke |= {"windowsVirtualKeyCode": codes[key]} if key in codes else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **stroke)
        self.call("Input.dispatchKeyEvent", type="keyUp", **stroke)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element on the screen, in pixels."""
        element = f"document.querySelector({json.dumps(selector)})"
        x, y, width, height = self.run(f"(r => [r.x, r.y, r.width, r.height])({element}.getBoundingClientRect())")
        return x, y, width, height

    def screenshot(self) -> Image.Image:
        """What the window shows now."""
        shot = self.call("Page.captureScreenshot", format="png")
        return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


@contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """A fresh Chromium with one empty tab; `profile` is a folder for it to write to."""
    assert CHROMIUM is not None
    port = free_port()
    command = [CHROMIUM, *FLAGS, f"--remote-debugging-port={port}", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(tab_address(port), max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(30)


def tab_address(port: int) -> str:
    """The WebSocket of the first tab, once Chromium is up."""
    deadline = time.monotonic() + 120
    while True:
        try:
            tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=10).json()
            return next(str(tab["webSocketDebuggerUrl"]) for tab in tabs if tab["type"] == "page")
        except (httpx.HTTPError, StopIteration):
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.5)
