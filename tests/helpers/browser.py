"""A headless Chromium, driven over its DevTools protocol through a pipe: no port, no driver, no network.

Messages are JSON, each ended by a zero byte; the browser reads them from descriptor 3 and writes answers to 4.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Tab:
    """One page, and everything that it asked for or complained about."""

    def __init__(self, to: int, from_: int) -> None:
        self._to, self._from, self._number, self._rest = to, from_, 0, b""
        self.requests: list[str] = []
        """The addresses that the page asked for."""
        self.blocked: list[str] = []
        """Why requests of the page were stopped, each time."""
        self.complaints: list[str] = []
        """Errors and warnings of its console, policy violations among them."""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        return dict(answer["result"])

    def open(self, address: str) -> None:
        """Go to an address, and wait until the page is loaded."""
        self.call("Page.navigate", url="about:blank")  # a new fragment alone would load nothing
        self.requests.clear()
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Until an expression is true."""
        code = f"""new Promise((yes, no) => {{
            const end = performance.now() + {1000 * seconds};
            const late = () => performance.now() > end ? no("too late") : setTimeout(look, 10);
            const look = () => ({condition}) ? yes(true) : late();
            look();
        }})"""
        self.run(code)

    def press(self, key: str, text: str | None = None) -> None:
        """A key, as a person presses it."""
        typed = {"text": text} if text is not None else {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """The size of the window; a phone's width too."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what is in the window."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._from, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
            case "Network.loadingFailed" if "blockedReason" in given:
                self.blocked.append(given["blockedReason"])
            case "Log.entryAdded" if given["entry"]["level"] in ("error", "warning"):
                self.complaints.append(given["entry"]["text"])
            case "Runtime.consoleAPICalled" if given["type"] in ("error", "warning"):
                self.complaints.append(str(given["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(given["exceptionDetails"]))


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a browser that ends with the block."""
    assert CHROMIUM is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def descriptors() -> None:
        os.setpgid(0, 0)
        high = os.dup(from_write)  # 3 and 4 may be the ends themselves
        os.dup2(to_read, 3)
        os.dup2(high, 4)
        os.set_inheritable(3, True)
        os.set_inheritable(4, True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=descriptors,
        )
        os.close(to_read)
        os.close(from_write)
        try:
            yield Tab(to_write, from_read)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(to_write)
            os.close(from_read)
