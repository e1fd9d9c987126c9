"""The part of the live view that shows an evaluation: a row per benchmark, and a question with both answers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import zip_longest

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.events import Graded, Side
from upft_mlx.ui.state import State
from upft_mlx.ui.tally import Pair, Tally
from upft_mlx.ui.text import Glyphs

LINES_AROUND_TABLE = 14
"""Lines of an evaluation's frame that are not benchmarks: stages, progress, heads, the answers, two spare."""
GAP = 2
"""Columns between columns."""
SHORTEST_NAME = 8
"""Columns that a benchmark's name keeps."""
BAR = 10
SIDE_BY_SIDE = (100, 16)
"""Columns and lines from which both completions are shown beside each other."""
TEXT_LINES = 12
CHARACTERS = 3000
"""Of a completion, its end."""
SIDES: tuple[Side, Side] = ("base", "tuned")
ANSWER = 24
"""Columns of an answer."""

# What the table has, from narrow screens to wide ones; the first that leaves room for the names is taken from the end.
_DETAIL = (
    frozenset[str](),
    frozenset({"intervals"}),
    frozenset({"intervals", "difference"}),
    frozenset({"intervals", "difference", "bar"}),
    frozenset({"intervals", "difference", "bar", "tokens"}),
)


class EvaluationFrame:
    """One picture of an evaluation for one size of the screen."""

    def __init__(self, state: State, glyphs: Glyphs, width: int, height: int, now: float) -> None:
        self.state, self.glyphs, self.now = state, glyphs, now
        self.width, self.height = width, height
        self.detail = _DETAIL[0]

    def parts(self, used: int) -> Iterator[RenderableType]:
        """The table, then what still fits: flips, a question, both answers. `used`: lines that are taken already."""
        shown, hidden = self._shown()
        table = self._table(shown)
        yield table
        if hidden:
            yield self.line(f"{self.glyphs.ellipsis} and {hidden} more", "dim")
        left = self.height - used - 1 - len(shown) - bool(hidden) - 1
        below = [*self._difference(), *self._flips()]
        pair = self.state.answers.shown(self.now)
        lines = self._pair(pair, left - 1) if pair else []
        wide = self.width >= SIDE_BY_SIDE[0] and left >= SIDE_BY_SIDE[1]
        longest = max((len(side.completion) for side in (pair.base, pair.tuned) if side), default=0) if pair else 0
        if below and left - len(lines) - 1 > len(below):
            yield Text()
            yield from below
        if lines:
            yield Text()
            yield from lines
        if pair and wide and longest > self.width:  # else the lines above have all of it
            yield Text()
            yield self._side_by_side(pair, min(TEXT_LINES, left - len(lines) - len(below) - 4))

    def line(self, text: str, style: str = "") -> Text:
        """One line that ends at the screen's width."""
        return self.cropped(Text(text, style))

    def cropped(self, text: Text, width: int | None = None) -> Text:
        """One line that ends at the width, which is the screen's unless it is given."""
        width = self.width if width is None else width
        text.no_wrap, text.overflow = True, "crop"
        if text.cell_len > width:
            text.truncate(max(0, width - len(self.glyphs.ellipsis)), overflow="crop")
            text.append(self.glyphs.ellipsis)
        return text

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
        """A row per benchmark, with as much detail as the width allows."""
        longest = max((len(self.glyphs.line(name)) for name in names), default=0)
        for detail in reversed(_DETAIL):
            self.detail = detail
            heads, rows = self._heads(), [self._row(name) for name in names]
            room = self.width - sum(GAP + max(map(len, column)) for column in zip(heads, *rows, strict=True))
            if room >= min(longest, 2 * SHORTEST_NAME):
                break
        table = Table("benchmark", *heads, box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
        for head, column in zip(["benchmark", *heads], table.columns, strict=True):
            column.no_wrap, column.overflow = True, self.glyphs.overflow
            column.justify = "left" if head in ("benchmark", "progress", *SIDES, "tuned - base") else "right"
        for name, row in zip(names, rows, strict=True):
            table.add_row(self.cropped(Text(self.glyphs.line(name)), max(SHORTEST_NAME, room)), *row)
        return table

    def _heads(self) -> list[str]:
        g = self.glyphs
        flips = [f"{g.wrong}{g.arrow}{g.done}", f"{g.done}{g.arrow}{g.wrong}"]
        difference = ["tuned - base"] if "difference" in self.detail else []
        return ["progress", *SIDES, *difference, *flips, *(["tokens"] if "tokens" in self.detail else [])]

    def _row(self, name: str) -> list[Text]:
        tally, pending = self.state.tallies[name], self.glyphs.pending
        both = tally.done("base") and tally.done("tuned")
        cells = [self._progress(tally), *(self._side(tally, side) for side in SIDES)]
        if "difference" in self.detail:
            cells.append(Text(tally.difference() or pending))
        cells += [Text(str(n) if both else pending) for n in (tally.gained, tally.lost)]
        if "tokens" in self.detail:
            cells.append(Text(tally.lengths(self.glyphs.arrow) or pending))
        return cells

    def _progress(self, tally: Tally) -> Text:
        """How far the sides are: a share, with a bar where there is room; completions of each side at the end."""
        if not tally.done("base") and not tally.done("tuned"):
            return Text(self.glyphs.pending, "dim")
        if tally.share == 1:
            return Text(f"{tally.expected:,}", "dim")
        share = Text(f"{int(100 * tally.share)} %")
        if "bar" not in self.detail:
            return share
        filled = int(tally.share * BAR)
        bar = Text(self.glyphs.bar[0] * filled, "cyan").append(self.glyphs.bar[1] * (BAR - filled), "dim")
        return bar.append("  ").append_text(share)

    def _side(self, tally: Tally, side: Side) -> Text:
        if not tally.done(side):
            return Text(self.glyphs.pending, "dim")
        accuracy = tally.accuracy(side, paired=True)
        return Text(accuracy if "intervals" in self.detail else accuracy.partition(" [")[0])

    def _difference(self) -> Iterator[Text]:
        """The difference of the benchmark in hand, where the table has no room for it."""
        latest = self.state.latest
        if latest is None or "difference" in self.detail:
            return
        if text := self.state.tallies[latest.benchmark].difference():
            yield self.line(f"{self.glyphs.line(latest.benchmark)}: tuned - base {text} points")

    def _flips(self) -> Iterator[Text]:
        """The problems that flipped last, wrong to right and right to wrong."""
        flips = list(self.state.answers.flips)[::-1]
        if not flips:
            return
        g, text = self.glyphs, Text("flips", "dim")  # spaces stand apart: SVG viewers drop those that begin a text
        for sign, style, gained in (
            (f"{g.wrong}{g.arrow}{g.done}", "green", True),
            (f"{g.done}{g.arrow}{g.wrong}", "red", False),
        ):
            names = [self._place(p.latest) for p in flips if p.latest.correct is gained][:3]
            if names:
                text.append("  ").append(sign, style).append(" ").append(", ".join(names))
        yield self.cropped(text)

    def _place(self, event: Graded) -> str:
        sample = f" #{event.sample}" if event.sample else ""
        return f"{self.glyphs.line(event.problem_id)}{sample}"

    def _pair(self, pair: Pair, room: int) -> list[Text]:
        """A question with gold and answers; what room is left shows the ends of the completions."""
        event, glyphs = pair.latest, self.glyphs
        head = Text(f"{glyphs.line(event.benchmark)} {self._place(event)}", "bold")
        head.append("  ").append(f"gold {glyphs.line(event.gold)}", "not bold")
        answers = [answer for answer in (pair.base, pair.tuned) if answer is not None]
        lines = [self.cropped(head)]
        if room > len(answers) + 1:
            lines.append(self.cropped(Text("  ").append(glyphs.line(event.question), "dim")))
        for answer in answers:
            lines.append(self._answer(answer))
        return lines[: max(0, room)]

    def _side_by_side(self, pair: Pair, room: int) -> Table:
        """The ends of both completions in two columns."""
        width = (self.width - 2 * GAP) // 2
        table = Table.grid(Column(width=width), Column(width=width), padding=(0, GAP, 0, 0))
        texts = [self.glyphs.line(side.completion[-CHARACTERS:]) if side else "" for side in (pair.base, pair.tuned)]
        wrapped = [textwrap.wrap(text, width)[-room:] for text in texts]
        for cells in zip_longest(*wrapped, fillvalue=""):
            table.add_row(*(Text(cell, "dim", no_wrap=True, overflow="crop") for cell in cells))
        return table

    def _answer(self, event: Graded) -> Text:
        """Side, sign and answer, and the end of the completion in what is left of the line."""
        glyphs = self.glyphs
        sign, style = (glyphs.done, "green") if event.correct else (glyphs.wrong, "red")
        answer = "none found" if event.answer is None else glyphs.line(event.answer)[:ANSWER]
        text = Text("  ").append(f"{event.side:5} ", "dim").append(f"{sign} {answer}", style)
        room = self.width - text.cell_len - 2 - len(glyphs.ellipsis)
        end = glyphs.line(event.completion[-400:])
        if room > 10 and end:
            tail = end[-room:] if len(end) > room else end
            text.append("  ").append(f"{glyphs.ellipsis}{tail}" if tail != end else tail, "dim")
        return self.cropped(text)
