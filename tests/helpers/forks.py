"""`upft` in forks of one process that has imported everything: 0.1 s of CPU time instead of 3 s for each command.

macOS does not let a process fork that has used its frameworks: there each command is a new process.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

SERVER = Path(__file__).resolve().parent.parent / "campaign" / "server.py"
AT_FIRST = dict(os.environ)
"""The environment of the server, which no test has changed."""


def start(
    arguments: Sequence[str | Path], *, code: str = "", cwd: Path | None = None, **env: str
) -> Fork | subprocess.Popen[str]:
    """Start `upft` with these arguments, or `code` with them in `sys.argv`."""
    if sys.platform != "darwin":
        return Fork(arguments, code, cwd or Path.cwd(), env)
    command = [sys.executable, *(["-c", code] if code else ["-m", "upft_mlx"]), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=cwd, env={**os.environ, **env})


class Fork:
    """A process like those of `subprocess.Popen`, with its standard output and errors in files."""

    def __init__(self, arguments: Sequence[str | Path], code: str, cwd: Path, env: dict[str, str]) -> None:
        self._folder = tempfile.mkdtemp()
        self._said: tuple[str, str] | None = None
        self.returncode: int | None = None
        job = {
            "cwd": str(cwd),
            "out": self._folder,
            "args": [str(argument) for argument in arguments],
            "code": code,
            "env": {**os.environ, **env},
            "at": -1,
            "errno": 0,
            "how": 0,
            "seconds": None,
        }
        pid = _asked(job)
        assert isinstance(pid, int)
        self.pid = pid

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = _asked({"ended": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed, on its standard output and errors, until it ended.

        Raises:
            subprocess.TimeoutExpired: it has not ended in that time.
        """
        deadline = time.monotonic() + timeout
        if self._said is not None:
            return self._said
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        out, error = (Path(self._folder, name).read_text(errors="replace") for name in ("stdout", "stderr"))
        shutil.rmtree(self._folder)
        self._said = out, error
        return self._said


def _asked(request: dict[str, object]) -> int | None:
    """The server's answer to one line."""
    process = _server()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer: int | None = json.loads(process.stdout.readline())
    return answer


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, str(SERVER)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=AT_FIRST)
    atexit.register(process.communicate)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process
