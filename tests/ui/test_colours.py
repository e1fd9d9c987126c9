"""NO_COLOR, FORCE_COLOR and TERM=dumb, seen from outside: what the commands write to a real pseudo terminal."""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.input import upft, write

ESCAPE = "\x1b"
SMALL = """
model: builtin:arithmetic
problems: {builtin: arithmetic, limit: 8}
prefix: {length: 4, structure_ratio: 0}
train: {steps: 2, batch_size: 4, valid_ratio: 0}
evaluate: {max_tokens: 24, benchmarks: [{name: arithmetic, limit: 4}]}
"""


def on_a_terminal(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Status and everything that the command writes to a terminal of 80 x 24."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child: nothing but the command
        os.chdir(folder)
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        size = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PAGER": "cat"}
        command = [sys.executable, "-m", "upft_mlx", *arguments]
        os.execve(sys.executable, command, {**clean, **size, **environment})
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        written += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), written.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    root = tmp_path_factory.mktemp("colours")
    recipe = write(root / "small.yaml", SMALL)
    done = upft("run", recipe, "--run-dir", root / "runs" / "small", "--plain")
    assert done.exit_code == 0, done.output
    return root


PRINTING = [
    ("show", "small"),
    ("show", "small", "--rows"),
    ("show", "small", "--problem", "evaluation-0000"),
    ("recipes",),
    ("doctor",),
    ("run", "nothing.yaml"),
    ("--version",),
]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_with_no_color_no_escape_sequence_comes_out(folder: Path, arguments: tuple[str, ...]) -> None:
    status, text = on_a_terminal(folder, *arguments, NO_COLOR="1")
    assert text.strip()
    assert ESCAPE not in text
    assert "Traceback" not in text
    assert status == (2 if arguments[0] == "run" else 0)


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "0"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_come_unless_no_color_is_set_to_anything_or_the_terminal_is_dumb(
    folder: Path, environment: dict[str, str], coloured: bool
) -> None:
    _, text = on_a_terminal(folder, "run", "nothing.yaml", **environment)
    assert "Error: " in text.replace("\x1b[0m", "").replace("\x1b[1;31m", "")
    assert ("\x1b[1;31m" in text) is coloured
    assert (ESCAPE in text) is coloured


def test_the_live_view_moves_the_cursor_and_has_no_colour_with_no_color(folder: Path) -> None:
    status, text = on_a_terminal(folder, "generate", "small.yaml", "--run-dir", "runs/live", NO_COLOR="1")
    assert status == 0
    assert ESCAPE in text  # the cursor is moved, hidden and shown
    assert not re.search(r"\x1b\[[0-9;]*m", text)


def test_a_pipe_has_colours_only_where_they_are_forced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert ESCAPE not in upft("run", "nothing.yaml").stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;31m" in upft("run", "nothing.yaml").stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert ESCAPE not in upft("run", "nothing.yaml").stderr
