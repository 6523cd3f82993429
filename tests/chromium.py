"""Headless Chromium, driven over its DevTools protocol: JSON through two pipes, so that no port and no client is needed.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import require

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "about:blank",
)
SECONDS = 30.0
"""How long anything may take."""


class Browser:
    """A browser that runs."""

    def __init__(self, process: "subprocess.Popen[bytes]", commands: int, answers: int) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self._number, self._changed = 0, threading.Condition()
        self._replies: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._answers, 1 << 16):
            *messages, rest = (rest + piece).split(b"\0")
            with self._changed:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._replies[message["id"]] = message
                    else:
                        self.events.append(message)
                self._changed.notify_all()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        with self._changed:
            self._number += 1
            number = self._number
            message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
            os.write(self._commands, json.dumps(message).encode() + b"\0")
            assert self._changed.wait_for(lambda: number in self._replies, SECONDS), f"{method}: Chromium does not answer"
            reply = self._replies.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']['message']}"
        return reply["result"]

    @contextmanager
    def page(self, url: str, width: int = 1000, height: int = 800, dark: bool = False) -> Iterator["Page"]:
        """Open an address in a context of its own; close it at the end."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        page.wait("document.readyState === 'complete'")
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript's."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression holds; return its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"it did not come to this: {expression}\n{self.text()[-2000:]}"
            time.sleep(0.02)
        return value

    def text(self) -> str:
        """Return what is to be seen."""
        return self.evaluate("document.body.innerText")

    def write(self, text: str) -> None:
        """Write a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key: Enter, Tab, Escape, Space."""
        code, text = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "Space": (32, " ")}[key]
        sent = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **sent)
        self.call("Input.dispatchKeyEvent", type="keyUp", **sent)

    def click(self, selector: str) -> None:
        """Click in the middle of the last element that a selector finds, with the mouse."""
        place = self.evaluate(
            f"(() => {{ const all = document.querySelectorAll({json.dumps(selector)}), one = all[all.length - 1];"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2, width: box.width} })()"
        )
        assert place["width"], f"{selector} is not to be seen"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place["x"], y=place["y"], button="left", clickCount=1)

    def photograph(self, path: Path) -> None:
        """Save what is to be seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def happened(self, method: str) -> list[dict[str, Any]]:
        """Return the events of a kind so far."""
        mine = [event for event in list(self._browser.events) if event.get("sessionId") == self._session]
        return [event["params"] for event in mine if event["method"] == method]


def _above_the_protocols(number: int) -> int:
    """Return another number for a file: 3 and 4 are wanted for the protocol."""
    above = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(number)
    return above


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser with a new profile; end it and remove what it wrote."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require(path is not None, "Chromium (Debian's package `chromium`)")
    (their_in, commands), (answers, their_out) = (map(_above_the_protocols, os.pipe()) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="luthier-chromium-", ignore_cleanup_errors=True) as profile:
        # the protocol wants the pipes to be its files 3 and 4
        script = f'exec "$@" 3</dev/fd/{their_in} 4>/dev/fd/{their_out} {their_in}<&- {their_out}>&-'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(path), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        browser = Browser(process, commands, answers)
        try:
            browser.call("Browser.getVersion")
            yield browser
            browser.call("Browser.close")
        finally:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(commands)
            os.close(answers)
