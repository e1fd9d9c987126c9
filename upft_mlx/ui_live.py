"""The live view: one frame drawn from the state some times per second, permanent lines above it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.events import Event, Graded, Side
from upft_mlx.ui_state import State, Status, Tally, permanent_line, training_numbers
from upft_mlx.ui_text import Glyphs, clock, glyphs_for, sparkline

REFRESH = 8
"""Frames per second; events come faster, they only change the state."""

STYLES: dict[Status, str] = {
    "pending": "dim",
    "running": "bold cyan",
    "done": "green",
    "skipped": "dim",
    "current": "dim green",
    "stopped": "bold red",
}
SKIPPED = {"skipped": "(skipped)", "current": "(skipped: current)"}
LINES_AROUND_TABLE = 12
"""Lines of an evaluation's frame that are not benchmarks: stages, progress, heads, latest answer, a spare."""


class LiveView:
    """An observer that keeps the state, and the renderable that draws it."""

    def __init__(
        self, console: Console, stages: Sequence[str] = (), now: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._now = console, now
        self._state = State(stages)
        self._glyphs = glyphs_for(console.encoding)
        # Frames are drawn by Rich's thread. Held only to touch the state, never to print: printing takes
        # Rich's own locks, which the drawing thread may hold.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take an event; print its permanent line above the frame if it has one."""
        with self._lock:
            self._state.apply(event, self._now())
        line = permanent_line(event, self._glyphs)
        if line:
            self._console.print(Text(line))

    def stop(self) -> None:
        """Mark what still runs as stopped."""
        with self._lock:
            self._state.stop()

    def live(self) -> Live:
        """The display, to be entered."""
        # What other libraries print goes above the frame, unless the user sent that stream elsewhere.
        return Live(
            console=self._console,
            refresh_per_second=REFRESH,
            get_renderable=lambda: self,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw the state as it is now."""
        with self._lock:
            frame = Frame(self._state, self._glyphs, options.max_width, options.max_height, self._now())
            parts = list(frame.parts())
        yield Group(*parts)


class Frame:
    """One picture of a state for one size of the screen."""

    def __init__(self, state: State, glyphs: Glyphs, width: int, height: int, now: float) -> None:
        self.state, self.glyphs, self.now = state, glyphs, now
        self.width, self.height = width, height

    def parts(self) -> Iterator[RenderableType]:
        """From top to bottom; the most important first, since a small screen cuts the end off."""
        state = self.state
        if state.stages:
            yield self._stages()
        if state.stage or state.meter:
            yield Text()
            yield from self._progress()
        if state.stage.startswith("train") and state.metrics:
            yield Text()
            yield from self._training()
        if state.stage.startswith("evaluate") and state.tallies:
            yield Text()
            yield from self._evaluation()

    def _line(self, text: str, style: str = "") -> Text:
        """One line, cropped to the width."""
        line = Text(text, style, no_wrap=True, overflow="ignore")
        if line.cell_len > self.width:
            line.truncate(max(0, self.width - len(self.glyphs.ellipsis)), overflow="crop")
            line.append(self.glyphs.ellipsis)
        return line

    def _stages(self) -> Text:
        """`(done) a  (done) b, c (skipped: current)  (running) d  (pending) e`."""
        glyphs = self.glyphs
        signs = {
            "running": glyphs.running,
            "stopped": glyphs.wrong,
            "done": glyphs.done,
            "current": glyphs.done,
        }
        line = Text()
        for status, group in groupby(self.state.stages, lambda stage: self.state.stages[stage]):
            names = [glyphs.line(name) for name in group]
            if status in SKIPPED:  # the reason once for all in a row, a line has little room
                names = [f"{', '.join(names)} {SKIPPED[status]}"]
            for name in names:
                line.append("  " if line else "")
                line.append(f"{signs.get(status, glyphs.pending)} {name}", STYLES[status])
        return line

    def _progress(self) -> Iterator[RenderableType]:
        state, meter = self.state, self.state.meter
        head = Text(self.glyphs.line(meter.stage if meter else state.stage), "bold")
        head.append(f"  {self.glyphs.line(state.detail)}", "not bold dim")
        if meter is None:
            head.append(f"  {clock(self.now - state.started)}" if self._running else "", "not bold dim")
            yield self._cropped(head)
            return
        yield self._cropped(head)
        yield ProgressBar(total=max(1, meter.total), completed=meter.done, width=self.width - 1)
        yield self._line(f"  {self.glyphs.pending}  ".join(meter.numbers(self.now)).strip())

    @property
    def _running(self) -> bool:
        return self.state.stages.get(self.state.stage) == "running"

    def _cropped(self, text: Text) -> Text:
        text.no_wrap, text.overflow = True, "crop" if self.glyphs.ascii else "ellipsis"
        return text

    def _training(self) -> Iterator[RenderableType]:
        state = self.state
        valid = f"valid loss {state.valid[1]:.4f} (step {state.valid[0]:,})" if state.valid else ""
        yield Text("   ").join(Text(part, no_wrap=True) for part in training_numbers(state.metrics, valid))
        ends = f"loss {state.losses[0]:.3f} ", f" {state.losses[-1]:.3f}"
        room = min(60, self.width - sum(map(len, ends)) - 1)
        yield self._line(sparkline(state.losses, room, self.glyphs.sparks).join(ends), "cyan")

    def _evaluation(self) -> Iterator[RenderableType]:
        shown, hidden = self._shown()
        table = self._table()
        for name in shown:
            table.add_row(*self._row(name, self.state.tallies[name]))
        yield table
        if hidden:
            yield self._line(f"{self.glyphs.ellipsis} and {hidden} more", "dim")
        if self.state.latest:
            yield Text()
            yield from self._latest(self.state.latest)

    def _shown(self) -> tuple[list[str], int]:
        """The benchmarks that fit, the one being graded among them, and how many do not."""
        names = list(self.state.tallies)
        room = max(1, self.height - LINES_AROUND_TABLE)
        if len(names) <= room:
            return names, 0
        current = names.index(self.state.latest.benchmark) if self.state.latest else 0
        first = min(max(0, current - room // 2), len(names) - room)
        return names[first : first + room], len(names) - room

    def _table(self) -> Table:
        glyphs = self.glyphs
        to_right, to_wrong = (
            f"{a}{glyphs.arrow}{b}" for a, b in ((glyphs.wrong, glyphs.done), (glyphs.done, glyphs.wrong))
        )
        overflow = "crop" if glyphs.ascii else "ellipsis"
        return Table(
            Column("benchmark", no_wrap=True, overflow=overflow, min_width=6),  # type: ignore[arg-type]
            Column("base", no_wrap=True),
            Column("", no_wrap=True, justify="right", style="dim"),
            Column("tuned", no_wrap=True),
            Column("", no_wrap=True, justify="right", style="dim"),
            Column(to_right, no_wrap=True, justify="right"),
            Column(to_wrong, no_wrap=True, justify="right"),
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            header_style="bold",
        )

    def _row(self, name: str, tally: Tally) -> list[Text]:
        return [
            Text(self.glyphs.line(name)),
            *self._side(tally, "base"),
            *self._side(tally, "tuned"),
            Text(str(tally.gained)),
            Text(str(tally.lost)),
        ]

    def _side(self, tally: Tally, side: Side) -> tuple[Text, Text]:
        """Accuracy and how many of how many; a complete side needs one number only."""
        done = tally.done(side)
        if not done:
            return Text(self.glyphs.pending, "dim"), Text()
        numbers = f"{done}" if done == tally.expected else f"{done}/{tally.expected}"
        return Text(tally.accuracy(side)), Text(numbers)

    def _latest(self, event: Graded) -> Iterator[Text]:
        glyphs = self.glyphs
        sign, word, style = (
            (glyphs.done, "right", "green") if event.correct else (glyphs.wrong, "wrong", "red")
        )
        answer = "none found" if event.answer is None else glyphs.line(event.answer)[: self.width // 3]
        text = Text(f"{sign} {word}", style)
        text.append(f"  {event.side}  {glyphs.line(event.benchmark)}", "default dim")
        text.append(f"  answer {answer}  gold {glyphs.line(event.gold)}", "default")
        yield self._cropped(text)
        yield self._line(f"  {glyphs.line(event.question)}", "dim")
