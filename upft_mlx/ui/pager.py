"""What does not fit on the terminal goes through a pager."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType


def paged(console: Console, parts: Sequence[RenderableType]) -> AbstractContextManager[Any]:
    """A block in which these parts are to be printed: into a pager where they are longer than the terminal."""
    os.environ.setdefault("LESS", "-R")  # else less shows colours as codes
    long = console.is_terminal and len(console.render_lines(Group(*parts))) > console.height
    return console.pager(styles=True) if long else nullcontext()
