"""The terminal as the environment wants it to be used, and a pager for what does not fit on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """A text to print with soft_wrap; on a terminal (`alive`) its lines break between words."""
    shown = glyphs_for(console.encoding).lines(text)
    return Text(wrapped(shown, console.width) if (console.is_terminal if alive is None else alive) else shown)
