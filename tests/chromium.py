"""A real headless Chromium, spoken to over its DevTools pipe: no browser driver, no port, no network."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "chrome-headless-shell", "google-chrome", "google-chrome-stable")
PATIENCE_S = 30


def find_chromium() -> str | None:
    """The program that CHROMIUM names, or the first one on PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One page of a running browser: `open` it on a file, ask it with `js`, press its keys, read its `events`."""

    def __init__(self, program: str, profile: Path):
        read_commands, self._commands = os.pipe()
        results, write_results = os.pipe()

        def connect() -> None:  # the browser reads its commands from descriptor 3 and answers on 4
            os.dup2(read_commands, 3)
            os.dup2(write_results, 4)

        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "about:blank"]
        with (profile / "stderr.txt").open("wb") as log:
            self._process = subprocess.Popen(
                command, pass_fds=(3, 4), preexec_fn=connect, stdout=log, stderr=log, start_new_session=True
            )
        os.close(read_commands)
        os.close(write_results)
        self._results, self._buffer = results, b""
        self._session: str | None = None
        self._count = 0
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        self("Page.setLifecycleEventsEnabled", enabled=True)

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one DevTools command; what the page reports meanwhile is added to `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def open(self, page: Path, fragment: str = "", width: int = 1280, height: int = 900) -> None:
        """Loads `page` afresh in a window of that many CSS pixels and waits for its load event."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._navigate("about:blank")  # a change of the fragment alone would load nothing
        self.events.clear()
        self._navigate(page.as_uri() + fragment)

    def js(self, expression: str) -> Any:
        """The JSON value of an expression in the page, awaited if it is a promise."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """One key down and up, as from a keyboard."""
        code = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "ArrowRight": 39, "ArrowDown": 40}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=code)

    def screenshot(self, element: str | None = None) -> bytes:
        """The visible part of the page, or the first element of a CSS selector, as PNG bytes."""
        if element is None:
            return base64.b64decode(self("Page.captureScreenshot")["data"])
        box = f"document.querySelector({element!r}).getBoundingClientRect()"
        at = self.js(f"(b => ({{x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}}))({box})")
        shot = self("Page.captureScreenshot", clip=at | {"scale": 1})
        return base64.b64decode(shot["data"])

    def saw(self, method: str) -> list[dict[str, Any]]:
        """The parameters of every event of that name since the page was opened."""
        return [event["params"] for event in self.events if event["method"] == method]

    def close(self) -> None:
        """Ends the browser and waits for it."""
        self._process.terminate()
        self._process.wait(timeout=PATIENCE_S)
        os.close(self._commands)
        os.close(self._results)

    def _navigate(self, url: str) -> None:
        loader = self("Page.navigate", url=url)["loaderId"]
        while not any(e["loaderId"] == loader and e["name"] == "load" for e in self.saw("Page.lifecycleEvent")):
            self._note(self._read())

    def _note(self, event: dict[str, Any]) -> None:
        if "method" in event:
            self.events.append(event)
        if event.get("method") == "Page.javascriptDialogOpening":  # else the page would wait for ever
            self._count += 1
            answer = {"id": self._count, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self._commands, json.dumps(answer | {"sessionId": self._session}).encode() + b"\0")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._results], [], [], PATIENCE_S)
            assert ready, f"Chromium said nothing for {PATIENCE_S} s"
            chunk = os.read(self._results, 2**16)
            assert chunk, "Chromium ended early: see stderr.txt in its profile folder"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
