"""The terminal as the environment wants it to be used."""

from __future__ import annotations

import os

from rich.console import Console


def open_console(*, stderr: bool = False) -> Console:
    """Stdout or stderr. With NO_COLOR set to anything lines carry no escape sequences at all, not even for bold.

    The rest is Rich's: FORCE_COLOR colours pipes too, TERM=dumb has neither colours nor a live view.
    """
    return Console(stderr=stderr, color_system=None if os.environ.get("NO_COLOR") else "auto")
