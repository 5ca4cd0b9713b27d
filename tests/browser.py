"""Headless Chromium, driven through chromedriver's own protocol (W3C WebDriver): one page, keys, pictures.

apt-get install chromium chromium-driver        where they are not installed, the tests that need them are skipped
"""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "chromium and chromium-driver are not installed" if None in (CHROMIUM, DRIVER) else ""
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how the protocol calls an element's id
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Control": "\ue009", "Tab": "\ue004", "Shift": "\ue008"}


class Browser:
    def __init__(self, driver: str, session: str):
        self.at = f"{driver}/session/{session}"

    def _ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        return _ask(f"{self.at}/{path}", body, method)

    def open(self, address: str) -> None:
        self._ask("url", {"url": address})

    def js(self, code: str, *arguments: Any) -> Any:
        return self._ask("execute/sync", {"script": code, "args": list(arguments)})

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self._ask("goog/cdp/execute", {"cmd": command, "params": parameters})

    def until(self, code: str, *arguments: Any, seconds: float = 20) -> Any:
        """Waits for the expression to be true."""
        end = time.monotonic() + seconds
        while not (found := self.js(f"return {code}", *arguments)):
            assert time.monotonic() < end, f"{code} did not come true; the page: {self.text()!r}"
            time.sleep(0.05)
        return found

    def text(self, selector: str = "body") -> str:
        return self.js("return document.querySelector(arguments[0]).innerText", selector)

    def focused(self) -> str:
        return self.js("return document.activeElement.id || document.activeElement.tagName.toLowerCase()")

    def click(self, selector: str) -> None:
        found = self._ask("element", {"using": "css selector", "value": selector})
        self._ask(f"element/{found[ELEMENT]}/click", {})

    def press(self, *keys: str) -> None:
        """One after another, e.g. "Who?" or "Tab"; "Control+Enter" together."""
        actions = []
        for key in keys:
            together = [KEYS.get(part, part) for part in key.split("+")] if "+" in key and len(key) > 1 else None
            if together is None:
                for one in [KEYS[key]] if key in KEYS else key:
                    actions += [{"type": "keyDown", "value": one}, {"type": "keyUp", "value": one}]
            else:
                actions += [{"type": "keyDown", "value": one} for one in together]
                actions += [{"type": "keyUp", "value": one} for one in reversed(together)]
        self._ask("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def look_like(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=phone)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("screenshot")))

    def complaints(self) -> list[str]:
        """What the console says: errors, and what the page's policy forbade."""
        return [line["message"] for line in self._ask("se/log", {"type": "browser"})]


def _ask(address: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.loads(error.read())["value"]["message"]) from None


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """profile: an empty folder for what it writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             "--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}"]  # fmt: skip
    wanted = {"goog:chromeOptions": {"binary": CHROMIUM, "args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with contextlib.suppress(OSError):
                if _ask(f"{address}/status")["ready"]:
                    break
            time.sleep(0.05)
        session = _ask(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        yield Browser(address, session)
        _ask(f"{address}/session/{session}", method="DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=10)
