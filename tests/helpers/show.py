"""What the tests of show share with others."""

from __future__ import annotations

import re
import shutil
import subprocess
import time

TMUX = shutil.which("tmux")


def screen(session: str) -> str:
    command = ["tmux", "-L", session, "capture-pane", "-p", "-t", session]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for(session: str, pattern: str, seconds: float = 60) -> str:
    """The first screen on which the pattern stands."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if re.search(pattern, text := screen(session)):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{pattern!r} did not come up; the screen:\n{screen(session)}")
