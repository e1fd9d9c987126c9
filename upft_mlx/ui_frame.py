"""One picture of a run for one size of the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.events import Graded, Side
from upft_mlx.ui_state import Meter, State, Status, Tally, training_numbers
from upft_mlx.ui_text import Glyphs, clock, sparkline

STYLES: dict[Status, str] = {
    "pending": "dim",
    "running": "bold cyan",
    "done": "green",
    "skipped": "dim",
    "current": "dim green",
    "stopped": "bold red",
}
SKIPPED = {"skipped": "(skipped)", "current": "(skipped: current)"}
LINES_AROUND_TABLE = 14
"""Lines of an evaluation's frame that are not benchmarks: stages, progress, heads, the latest, two spare."""
BAR = 60
"""Columns of bars and curves at most: longer ones say no more."""
GAP = 2
"""Columns between columns."""
SHORTEST_NAME = 8
"""Columns that a benchmark's name keeps."""
SIDES: tuple[Side, Side] = ("base", "tuned")


class Frame:
    """One picture of a state for one size of the screen."""

    def __init__(self, state: State, glyphs: Glyphs, width: int, height: int, now: float) -> None:
        self.state, self.glyphs, self.now = state, glyphs, now
        self.width, self.height = width, height

    def parts(self) -> Iterator[RenderableType]:
        """From top to bottom; the most important first, since a small screen cuts the end off."""
        state = self.state
        yield Text()  # apart from the permanent lines
        if state.stages:
            yield self._stages()
        if state.meter or (state.stage and state.stages[state.stage] != "done"):
            yield Text()
            yield from self._progress()
        if state.stage.startswith("train") and state.metrics:
            yield Text()
            yield from self._training()
        if state.stage.startswith("evaluate") and state.tallies:
            yield Text()
            yield from self._evaluation()

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
        head = Text().append(self.glyphs.line(meter.stage if meter else state.stage), "bold")
        if state.detail and (meter is None or meter.stage == state.stage):
            head.append(f"  {self.glyphs.line(state.detail)}", "dim")
        if meter is None and state.stages.get(state.stage) == "running":
            head.append(f"  {clock(self.now - state.started)}", "dim")
        yield self._cropped(head)
        if meter is not None:
            yield self._bar(meter)
            yield from self._packed(meter.numbers(self.now))

    def _bar(self, meter: Meter) -> Table:
        bar = ProgressBar(total=max(1, meter.total), completed=meter.done)
        share = 100 * meter.done // max(1, meter.total)
        row = Table.grid(Column(width=min(BAR, self.width - 6)), Column(justify="right", width=6))
        row.add_row(bar, Text(f"{share} %"))
        return row

    def _packed(self, parts: Sequence[str]) -> Iterator[Text]:
        """The parts in as few lines as hold them unbroken."""
        line = ""
        for part in parts:
            joined = f"{line} {self.glyphs.pending} {part}" if line else part
            if line and len(joined) > self.width:
                yield self._line(line)
                joined = part
            line = joined
        yield self._line(line)

    def _line(self, text: str, style: str = "") -> Text:
        return self._cropped(Text(text, style))

    def _cropped(self, text: Text, width: int | None = None) -> Text:
        """One line that ends at the width, which is the screen's unless it is given."""
        width = self.width if width is None else width
        text.no_wrap, text.overflow = True, "crop"
        if text.cell_len > width:
            text.truncate(max(0, width - len(self.glyphs.ellipsis)), overflow="crop")
            text.append(self.glyphs.ellipsis)
        return text

    def _training(self) -> Iterator[RenderableType]:
        state = self.state
        valid = f"valid loss {state.valid[1]:.4f} (step {state.valid[0]:,})" if state.valid else ""
        *losses, rate, speed, peak = training_numbers(state.metrics, valid)
        yield from self._packed(losses)
        yield from self._packed([rate, speed, peak])
        ends = f"loss {state.losses[0]:.3f} ", f" {state.losses[-1]:.3f}"
        room = min(BAR, self.width - sum(map(len, ends)))
        yield self._line(sparkline(state.losses, room, self.glyphs.sparks).join(ends), "cyan")

    def _evaluation(self) -> Iterator[RenderableType]:
        shown, hidden = self._shown()
        yield self._table(shown)
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

    def _table(self, names: list[str]) -> Table:
        """A row per benchmark; what is too wide gives way: first long names, then the intervals."""
        heads = self._heads()
        rows = self._rows(names, intervals=True)
        if (room := self._room(heads, rows)) < SHORTEST_NAME:
            rows = self._rows(names, intervals=False)
            room = self._room(heads, rows)
        table = Table("benchmark", *heads, box=None, header_style="bold")
        for head, column in zip(["benchmark", *heads], table.columns, strict=True):
            column.no_wrap, column.overflow = True, self.glyphs.overflow
            column.justify = "left" if head in ("benchmark", *SIDES) else "right"
        table.pad_edge, table.padding = False, (0, GAP, 0, 0)
        for name, *numbers in rows:
            table.add_row(self._cropped(name, max(SHORTEST_NAME, room)), *numbers)
        return table

    def _heads(self) -> list[str]:
        g = self.glyphs
        return ["base", "", "tuned", "", f"{g.wrong}{g.arrow}{g.done}", f"{g.done}{g.arrow}{g.wrong}"]

    def _room(self, heads: list[str], rows: list[list[Text]]) -> int:
        """Columns that the numbers leave to the names."""
        columns = zip(heads, *(row[1:] for row in rows), strict=True)
        return self.width - sum(GAP + max(map(len, column)) for column in columns)

    def _rows(self, names: list[str], *, intervals: bool) -> list[list[Text]]:
        rows = []
        for name in names:
            tally = self.state.tallies[name]
            both = tally.done("base") and tally.done("tuned")
            flips = [Text(str(n) if both else self.glyphs.pending) for n in (tally.gained, tally.lost)]
            cells = [cell for side in SIDES for cell in self._side(tally, side, intervals)]
            rows.append([Text(self.glyphs.line(name)), *cells, *flips])
        return rows

    def _side(self, tally: Tally, side: Side, intervals: bool) -> tuple[Text, Text]:
        """Accuracy and how many of how many; a complete side needs one number only."""
        done = tally.done(side)
        if not done:
            return Text(self.glyphs.pending, "dim"), Text()
        accuracy = tally.accuracy(side)
        numbers = f"{done}" if done == tally.expected else f"{done}/{tally.expected}"
        return Text(accuracy if intervals else accuracy.partition(" [")[0]), Text(numbers, "dim")

    def _latest(self, event: Graded) -> Iterator[Text]:
        glyphs = self.glyphs
        sign, word, style = (glyphs.done, "right", "green") if event.correct else (glyphs.wrong, "wrong", "red")
        answer = "none found" if event.answer is None else glyphs.line(event.answer)[: self.width // 3]
        text = Text().append(f"{sign} {word}", style)
        text.append(f"  {event.side}  {glyphs.line(event.benchmark)}", "dim")
        text.append(f"  answer {answer}  gold {glyphs.line(event.gold)}")
        yield self._cropped(text)
        yield self._line(f"  {glyphs.line(event.question)}", "dim")
