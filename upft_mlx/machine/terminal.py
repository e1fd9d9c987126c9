"""Switches the echo of keys off while a display moves the cursor, and back on however the process ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO

_SHOW_CURSOR = b"\x1b[?25h"
_displays: list[tuple[IO[str], bool]] = []
"""The files that have a display now, and whether its echo was switched off for it."""


@contextmanager
def unechoed(file: IO[str]) -> Iterator[None]:
    """A block in which the terminal does not echo keys.

    They, and the `^C` of Ctrl-C, would tear a display that moves the cursor. What is typed waits for the next reader.
    """
    display = file, _echoes(file)
    _displays.append(display)
    waits = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    try:
        if waits:
            signal.signal(signal.SIGTERM, _end)
        _echo(file, on=False)
        yield
    finally:
        _displays.remove(display)
        if display[1]:
            _echo(file, on=True)
        if waits:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def give_back() -> None:
    """Restore echo and cursor of terminals with a display: for a process that ends without leaving its blocks."""
    for file, echoed in _displays:
        if echoed:
            _echo(file, on=True)
        with suppress(OSError):  # no terminal, or gone
            os.write(file.fileno(), _SHOW_CURSOR)


def _end(number: int, _: FrameType | None) -> None:
    """Restore the terminal, then end by the signal: not every shell restores it."""
    give_back()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _echoes(file: IO[str]) -> bool:
    """Whether it is a terminal that echoes keys."""
    import termios  # not on Windows, where this is imported but nothing runs

    with suppress(OSError, termios.error):  # no terminal, or gone
        return bool(termios.tcgetattr(file.fileno())[3] & termios.ECHO)
    return False


def _echo(file: IO[str], *, on: bool) -> None:
    """Switch echo, unless this is no terminal, or another program's now."""
    if _echoes(file) != on and _in_foreground(file.fileno()):
        import termios

        with suppress(OSError, termios.error):
            modes = termios.tcgetattr(file.fileno())
            modes[3] ^= termios.ECHO
            termios.tcsetattr(file.fileno(), termios.TCSANOW, modes)


def _in_foreground(terminal: int) -> bool:
    """Whether this process may change the terminal: one in the background would be stopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not this process's controlling terminal, so it cannot stop it
        return True
