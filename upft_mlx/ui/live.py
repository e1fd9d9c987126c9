"""The live view: a frame drawn from the state some times per second, permanent lines above it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from upft_mlx.events import Event
from upft_mlx.ui.frame import Frame
from upft_mlx.ui.state import State, permanent_line
from upft_mlx.ui.text import glyphs_for

REFRESH = 8
"""Frames per second; events come faster, they only change the state."""


class LiveView:
    """An observer that keeps the state, and the renderable that draws it."""

    def __init__(
        self,
        console: Console,
        stages: Sequence[str] = (),
        now: Callable[[], float] = time.monotonic,
        *,
        verbose: bool = False,
    ) -> None:
        self._console, self._now, self._verbose = console, now, verbose
        self._state = State(stages)
        self._glyphs = glyphs_for(console.encoding)
        self._drawn: list[int] = []
        """Columns of each line of the last frame."""
        # Frames are drawn by Rich's thread. Held only to touch the state, never to print: printing takes
        # Rich's own locks, which the drawing thread may hold.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take an event; print its permanent line above the frame if it has one."""
        with self._lock:
            self._state.apply(event, self._now())
        line = permanent_line(event, self._glyphs, verbose=self._verbose)
        if line:
            self._console.print(Text(line))

    def stop(self) -> bool:
        """Mark what still runs as stopped; returns whether anything was."""
        with self._lock:
            return self._state.stop()

    def live(self) -> Live:
        """The display, to be entered."""
        # What other libraries print goes above the frame, unless the user sent that stream elsewhere.
        return _Live(
            console=self._console,
            refresh_per_second=REFRESH,
            get_renderable=lambda: self,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the state as it is now."""
        with self._lock:
            frame = Frame(self._state, self._glyphs, options.max_width, options.max_height, self._now())
            parts = list(frame.parts())
        lines = console.render_lines(Group(*parts), options, pad=False)[: options.max_height]
        self._drawn = [Segment.get_line_length(line) for line in lines]
        for line in lines:
            yield from line
            yield Segment.line()

    def broken_lines(self, width: int) -> int:
        """Lines that the last frame takes more since the terminal has this width."""
        return sum((columns - 1) // width for columns in self._drawn if columns)


class _Live(Live):
    """Rich's display, which also finds the top of a frame whose lines a narrower terminal has broken."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        view = self.get_renderable()
        broken = view.broken_lines(self.console.width) if isinstance(view, LiveView) else 0
        up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)) * broken
        return [Control(ControlType.CARRIAGE_RETURN, *up), *super().process_renderables(renderables)]
