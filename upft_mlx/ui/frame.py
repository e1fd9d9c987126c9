"""One picture of a run for one size of the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.quantities import clock, percent
from upft_mlx.ui.evaluation import EvaluationFrame
from upft_mlx.ui.state import StageStatus, State, training_numbers
from upft_mlx.ui.text import Glyphs, plot

STYLES: dict[StageStatus, str] = {
    "pending": "dim",
    "running": "bold cyan",
    "done": "green",
    "skipped": "dim",
    "current": "dim green",
    "stopped": "bold red",
}
SKIPPED = {"skipped": "(skipped)", "current": "(skipped: current)"}
BAR = 60
"""Columns of bars and curves at most: longer ones say no more."""
PLOT = 10
"""Lines of the plot of losses at most."""
SPARE = 1
"""Lines of the screen that a training's frame leaves to the permanent ones above it."""


class Frame:
    """One picture of a state for one size of the screen."""

    def __init__(self, state: State, glyphs: Glyphs, width: int, height: int, now: float) -> None:
        self.state, self.glyphs, self.now = state, glyphs, now
        self.width, self._height = width, height
        self._evaluation = EvaluationFrame(state, glyphs, width, height)

    def parts(self) -> Iterator[RenderableType]:
        """From top to bottom; the most important first, since a small screen cuts the end off."""
        state = self.state
        head: list[RenderableType] = [Text()]  # a line each, apart from the permanent lines
        if state.stages:
            head += self._stages()
            if (left := state.left(self.now)) is not None:
                head.append(self._evaluation.line(f"about {clock(left)} left over all stages", "dim"))
        if state.stages.get(state.stage) in ("running", "stopped"):  # what is finished has its line above
            head += [Text(), *self._progress()]
            if state.stage == "train" and state.metrics:
                head += [Text(), *self._training(len(head) + 1)]
        yield from head
        if state.stage == "evaluate" and state.tallies:
            yield Text()
            yield from self._evaluation.parts(len(head) + 1)

    def _stages(self) -> Iterator[Text]:
        """`(done) a  (done) b, c (skipped: current)  (running) d  (pending) e`."""
        glyphs = self.glyphs
        signs = {
            "running": glyphs.running,
            "stopped": glyphs.wrong,
            "done": glyphs.done,
            "current": glyphs.done,
        }
        parts = []
        for status, group in groupby(self.state.stages, lambda stage: self.state.stages[stage]):
            names = [glyphs.line(name) for name in group]
            if status in SKIPPED:  # the reason once for all in a row, a line has little room
                names = [f"{', '.join(names)} {SKIPPED[status]}"]
            parts += [Text(f"{signs.get(status, glyphs.pending)} {name}", STYLES[status]) for name in names]
        return self._packed(parts, "  ")

    def _progress(self) -> Iterator[RenderableType]:
        state, meter = self.state, self.state.meter
        head = Text().append(self.glyphs.line(meter.name if meter else state.stage), "bold")
        if state.detail and (meter is None or meter.name == state.stage):
            head.append(f"  {self.glyphs.line(state.detail)}", "dim")
        if meter is None and state.stages.get(state.stage) == "running":
            head.append(f"  {clock(self.now - state.started)}", "dim")
        yield self._evaluation.cropped(head)
        if meter is not None:
            total = max(1, meter.total)
            row = Table.grid(Column(width=min(BAR, self.width - 6)), Column(justify="right", width=6))
            row.add_row(ProgressBar(total=total, completed=meter.done), Text(f"{100 * meter.done // total} %"))
            yield row
            yield from self._numbers(meter.numbers(self.now))

    def _numbers(self, parts: Sequence[str]) -> Iterator[Text]:
        return self._packed([Text(part) for part in parts], f" {self.glyphs.pending} ")

    def _packed(self, parts: Sequence[Text], between: str) -> Iterator[Text]:
        """The parts in as few lines as hold them unbroken."""
        line = Text()
        for part in parts:
            if line and line.cell_len + len(between) + part.cell_len > self.width:
                yield self._evaluation.cropped(line)
                line = Text()
            line.append(between if line else "").append_text(part)
        yield self._evaluation.cropped(line)

    def _training(self, used: int) -> Iterator[RenderableType]:
        """The latest numbers, and a plot in the room that is left. `used`: lines that are taken already."""
        state = self.state
        fixed = "fixed rows {1:.4f} (step {0:,})".format(*state.fixed_losses[-1]) if state.fixed_losses else ""
        valid = f"valid loss {state.valid[1]:.4f} (step {state.valid[0]:,})" if state.valid else ""
        right = f"accuracy {percent(state.accuracy[1])} (step {state.accuracy[0]:,})" if state.accuracy else ""
        *losses, rate, speed, peak = training_numbers(state.metrics, fixed, valid, right)
        numbers = [*self._numbers(losses), *self._numbers([rate, speed, peak])]
        yield from numbers
        height = max(0, min(PLOT, self._height - used - len(numbers) - 1 - SPARE))  # 1: the names of the curves
        # A batch's loss depends on its rows: their order would shape the curve.
        moving = len(state.fixed_losses) > 1
        curves = [
            (self.glyphs.small, state.fixed_losses if moving else state.losses),
            (self.glyphs.dot, state.valid_losses),
        ]
        drawn = plot(curves, state.total_steps, min(BAR, self.width), height) if len(state.losses) > 1 else []
        if drawn:
            names = f"{self.glyphs.small} {'fixed rows' if moving else 'batches'}"
            names += f"  {self.glyphs.dot} validation" if state.valid_losses else ""
            yield self._evaluation.line(names, "dim")
            yield from (self._evaluation.line(text, "cyan") for text in drawn)
