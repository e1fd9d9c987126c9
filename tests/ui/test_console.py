"""The terminal itself: keys do not tear a display, and notes break between words."""

from __future__ import annotations

import os
import readline
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
from rich.console import Console

from upft_mlx.machine.terminal import unechoed
from upft_mlx.ui import views
from upft_mlx.ui.ask import open_answers, print_note
from upft_mlx.ui.doctor import print_findings
from upft_mlx.ui.text import wrapped


@pytest.fixture
def terminal() -> Iterator[Console]:
    """A pseudo-terminal."""
    screen, file = os.openpty()
    with os.fdopen(file, "w") as stream:
        yield Console(file=stream, force_terminal=True, width=40, color_system=None)
    os.close(screen)


def echoes(console: Console) -> bool:
    return bool(termios.tcgetattr(console.file.fileno())[3] & termios.ECHO)


@pytest.mark.parametrize(
    "display",
    [
        lambda console: views.open_view(plain=False, console=console),
        lambda console: open_answers(("base", "tuned"), plain=False, console=console),
    ],
)
def test_keys_do_not_tear_a_display(
    terminal: Console, display: Callable[[Console], AbstractContextManager[Any]]
) -> None:
    assert echoes(terminal)
    with display(terminal):
        assert not echoes(terminal)
    assert echoes(terminal)
    with pytest.raises(KeyboardInterrupt), display(terminal):
        raise KeyboardInterrupt
    assert echoes(terminal)


def test_plain_lines_leave_the_terminal_alone(terminal: Console) -> None:
    with views.open_view(plain=True, console=terminal):
        assert echoes(terminal)


def test_another_program_s_terminal_is_left_alone(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda terminal: os.getpgrp() + 1)
    with unechoed(terminal.file):
        assert echoes(terminal)


def test_a_terminal_without_echo_stays_so(terminal: Console) -> None:
    with unechoed(terminal.file):
        with unechoed(terminal.file):
            pass
        assert not echoes(terminal)


ENDS = {
    "killed": "os.kill(os.getpid(), 15)",
    "another rank is gone": "threading.Thread(target=Lifeline({})._end, args=['rank 1 is gone']).start()",
}


@pytest.mark.parametrize(("end", "status"), [("killed", -15), ("another rank is gone", 1)])
def test_a_process_that_ends_at_once_gives_the_terminal_back(end: str, status: int) -> None:
    """Only Bash restores the terminal, and only if a signal ended a process that Bash started."""
    screen, file = os.openpty()
    code = f"""if True:
        import os, sys, termios, threading, time
        from upft_mlx.distributed.lifeline import Lifeline
        from upft_mlx.ui import views
        with views.open_view(plain=False):
            assert not termios.tcgetattr(1)[3] & termios.ECHO
            {ENDS[end]}
            time.sleep(60)
    """
    environment, said = {**os.environ, "TERM": "xterm"}, b""
    with os.fdopen(file, "w") as stream:
        command = [sys.executable, "-c", code]
        ended = subprocess.Popen(command, stdin=stream, stdout=stream, stderr=stream, env=environment)
        assert ended.wait(30) == status
        assert termios.tcgetattr(stream.fileno())[3] & termios.ECHO
        os.set_blocking(screen, False)
        with suppress(BlockingIOError):
            while True:
                said += os.read(screen, 4096)
    os.close(screen)
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")


def test_notes_break_between_words(monkeypatch: pytest.MonkeyPatch, terminal: Console) -> None:
    monkeypatch.setattr("upft_mlx.ui.ask.open_console", lambda *, stderr: terminal)
    with terminal.capture() as captured:
        print_note("each question is separate; --chat keeps the conversation; `upft run my-recipe.yaml` trains")
    assert captured.get().splitlines() == [
        "each question is separate; --chat keeps",
        "the conversation;",
        "`upft run my-recipe.yaml` trains",
    ]


def test_text_after_a_label_stays_aligned_in_the_next_lines() -> None:
    text = (
        "note      6 test questions: only large differences will show\n  a line that is indented, and goes on as such"
    )
    assert wrapped(text, 40).split("\n") == [
        "note      6 test questions: only large",
        "          differences will show",
        "  a line that is indented, and goes on",
        "  as such",
    ]
    kept = wrapped("evaluate-26ba5be404ee56d7  2026-11-28 06:16  0.0 MB  6 completions per model, tuned kept all", 80)
    assert kept.split("\n")[1] == f"{'':27}tuned kept all", "of a list, each entry is broken alike"
    assert wrapped("a-label-of-many-columns  that leaves no room", 40).split("\n")[1:] == ["room"]


def test_values_of_the_doctor_break_between_words_under_their_column(terminal: Console) -> None:
    finding = {"group": "hub", "name": "login", "status": "ok", "advice": ""}
    with terminal.capture() as captured:
        print_findings([{**finding, "value": "none: needed for private models"}], console=terminal)
    assert captured.get().splitlines()[1:3] == [
        "  ✓ login                    none:",
        "                             needed for",
    ]


@pytest.mark.skipif("libedit" in str(readline.__doc__), reason="libedit has no bracketed paste")
def test_pasted_lines_are_one_question() -> None:
    screen, file = os.openpty()
    code = "from upft_mlx.ui.ask import read_question; print(ascii(read_question()))"
    environment = {**os.environ, "TERM": "xterm"}
    with os.fdopen(file, "w") as stream:
        asked = subprocess.Popen([sys.executable, "-c", code], stdin=stream, stdout=stream, env=environment)
    said = b""
    while b"> " not in said:
        said += os.read(screen, 4096)
    assert b"\x1b[?2004h" in said, "terminals mark pasted text only then"
    os.write(screen, b"\x1b[200~Sam has 6 bags.\nHow many?\x1b[201~\n")
    while b"bags.\\nHow many?'" not in said and asked.poll() is None:
        said += os.read(screen, 4096)
    assert asked.wait() == 0
    with suppress(OSError):  # Linux reports the closed end as an error
        said += os.read(screen, 4096)
    os.close(screen)
    assert b"'Sam has 6 bags.\\nHow many?'" in said
