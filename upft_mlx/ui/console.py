"""The terminal as the environment wants it to be used, and a pager for what does not fit on it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from upft_mlx.ui.text import glyphs_for, wrapped

UNBROKEN = 200
"""Columns of what goes into a file or a pipe: no table needs more, so nothing of one is cut off."""


def open_console(*, stderr: bool = False) -> Console:
    """Stdout or stderr; no text is parsed for markup or emoji codes. With NO_COLOR set to anything lines carry no
    escape sequences at all, not even for bold.

    The rest is Rich's: FORCE_COLOR colours pipes too, TERM=dumb has neither colours nor a live view, COLUMNS is the
    width of a terminal. (Whatever runs programs may set it: a pipe has its own width all the same.)
    """
    console = Console(
        stderr=stderr, color_system=None if os.environ.get("NO_COLOR") else "auto", markup=False, emoji=False
    )
    if not console.is_terminal:
        console.width = UNBROKEN
    return console


def say(console: Console, part: RenderableType = "") -> None:
    """Print a part; in a file or a pipe a text stays one line, however long it is."""
    console.print(part, soft_wrap=isinstance(part, Text) and not console.is_terminal)


def paged(console: Console, parts: Sequence[RenderableType]) -> AbstractContextManager[Any]:
    """A block in which these parts are to be printed: into a pager where they are longer than the terminal."""
    os.environ.setdefault("LESS", "-R")  # else less shows colours as codes
    long = console.is_terminal and len(console.render_lines(Group(*parts))) > console.height
    return console.pager(styles=True) if long else nullcontext()


def worded(text: str, console: Console, *, alive: bool | None = None) -> Text:
    """A text to be printed with soft_wrap; on a terminal (`alive`) its lines are broken between words."""
    shown = glyphs_for(console.encoding).lines(text)
    return Text(wrapped(shown, console.width) if (console.is_terminal if alive is None else alive) else shown)


@contextmanager
def unechoed(console: Console) -> Iterator[None]:
    """A block in which the terminal does not echo keys: they, and the `^C` of Ctrl-C, would tear a display that moves
    the cursor. What is typed waits for whoever reads next.
    """
    changed = _echo(console, on=False)
    try:
        yield
    finally:
        if changed:
            _echo(console, on=True)


def _echo(console: Console, *, on: bool) -> bool:
    """Switch echo; False if nothing was changed: it is so already, or this is no terminal, or another program's now."""
    import termios  # not on Windows, where this is imported but nothing runs

    with suppress(OSError, termios.error):  # no terminal, or gone
        terminal = console.file.fileno()
        modes = termios.tcgetattr(terminal)
        if bool(modes[3] & termios.ECHO) != on and _in_foreground(terminal):
            modes[3] ^= termios.ECHO
            termios.tcsetattr(terminal, termios.TCSANOW, modes)
            return True
    return False


def _in_foreground(terminal: int) -> bool:
    """Whether this process may change the terminal: one in the background would be stopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the terminal that controls this process: it cannot stop it
        return True
