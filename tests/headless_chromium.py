"""A headless Chromium that a test drives over the DevTools protocol, through a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import queue
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}


class Browser:
    """One tab.

    Args:
      folder: gets the profile, the log and what the browser keeps.
      size: of the window, in CSS pixels.

    Attributes:
      complaints: what the page threw or what the console was told as an error.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (900, 700)) -> None:
        assert CHROMIUM is not None
        theirs_in, self._to = _pipe()
        self._from, theirs_out = _pipe()
        log = os.open(folder / "chromium.log", os.O_CREAT | os.O_WRONLY, 0o600)
        self._pid = os.posix_spawn(
            CHROMIUM,
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--remote-debugging-pipe", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--disable-extensions"),
                *(f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"),
            ],
            {**os.environ, "HOME": str(folder)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, theirs_in, 3),
                (os.POSIX_SPAWN_DUP2, theirs_out, 4),
            ],
            setpgroup=0,
        )
        for end in (theirs_in, theirs_out, log):
            os.close(end)
        self.complaints: list[str] = []
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._count = 0
        self._session: str | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        attached = self.do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.do(f"{domain}.enable")
        self.resize(*size)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._to)
        self._reader.join(10)

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self._count += 1
        command: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        answer = self._answers.get(timeout=60)
        assert answer["id"] == self._count
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def resize(self, width: int, height: int) -> None:
        self.do(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def prefer(self, scheme: str) -> None:
        """The scheme is light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.do("Emulation.setEmulatedMedia", features=[feature])

    def open(self, url: str) -> None:
        self.do("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def look(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 20) -> Any:
        """Looks until the value is true, as an element is; that value."""
        expression = f"(value => value instanceof Node ? true : value)({expression})"
        end = time.monotonic() + timeout_s
        while not (value := self.look(expression)):
            assert time.monotonic() < end, f"after {timeout_s} s not true: {expression}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Into whatever has the focus."""
        self.do("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        code, text = _KEYS[key]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        down = {"text": text} if text else {}
        self.do("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event, **down)
        self.do("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of what the selector finds."""
        x, y = self.look(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        event = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, **event)

    def photograph(self, path: Path) -> None:
        """The window, as PNG."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

    def _read(self) -> None:
        with os.fdopen(self._from, "rb") as file:
            rest = b""
            while data := file.read1(1 << 16):
                *messages, rest = (rest + data).split(b"\0")
                for message in map(json.loads, messages):
                    self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.put(message)
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded":
            entry = message["params"]["entry"]
            if entry["level"] == "error":
                self.complaints.append(f"{entry['source']}: {entry['text']}")


def _pipe() -> list[int]:
    """Read and write end, above 9: Chromium reads its file 3 and writes its file 4."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends
