"""The part of the live view that shows an evaluation: a row per benchmark, and the problems that flipped last."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from upft_mlx.evaluation.summary import VARIANTS
from upft_mlx.ui.state import State
from upft_mlx.ui.text import Glyphs

LINES_AROUND_TABLE = 14
"""Lines of an evaluation's frame that are not benchmarks: stages, progress, heads, the flips, some spare."""
GAP = 2
"""Columns between columns."""
SHORTEST_NAME = 8
"""Columns that a benchmark's name keeps."""
BAR = 10

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

    def __init__(self, state: State, glyphs: Glyphs, width: int, height: int) -> None:
        self.state, self.glyphs = state, glyphs
        self.width, self.height = width, height

    def parts(self, used: int) -> Iterator[RenderableType]:
        """The table, then what still fits. `used`: lines that are taken already."""
        names, glyphs, latest = list(self.state.tallies), self.glyphs, self.state.latest
        room = max(1, self.height - LINES_AROUND_TABLE)
        current = names.index(latest.benchmark) if latest else 0
        first = min(max(0, current - room // 2), max(0, len(names) - room))
        shown = names[first : first + room]  # those that fit, the one being graded among them
        table, detail = self._table(shown)
        yield table
        if len(shown) < len(names):
            yield self.line(f"{glyphs.ellipsis} and {len(names) - len(shown)} more", "dim")
        below = []
        if latest and "difference" not in detail and (text := self.state.tallies[latest.benchmark].difference()):
            below.append(self.line(f"{glyphs.line(latest.benchmark)}: tuned - base {text} points"))
        if flips := self.state.flips:
            line = Text("flips", "dim")  # spaces stand apart: SVG viewers drop those that begin a text
            signs = (f"{glyphs.wrong}{glyphs.arrow}{glyphs.done}", f"{glyphs.done}{glyphs.arrow}{glyphs.wrong}")
            for sign, style, gained in ((signs[0], "green", True), (signs[1], "red", False)):
                new = [event for event in reversed(flips) if event.correct is gained][:3]
                if new:
                    places = [f"{glyphs.line(e.problem_id)}{f' #{e.sample}' if e.sample else ''}" for e in new]
                    line.append("  ").append(sign, style).append(" ").append(", ".join(places))
            below.append(self.cropped(line))
        if below and self.height - used - 2 - len(shown) - (len(shown) < len(names)) - 1 > len(below):
            yield Text()
            yield from below

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

    def _table(self, names: list[str]) -> tuple[Table, frozenset[str]]:
        """A row per benchmark, with as much detail as the width allows; and what detail that is."""
        g, longest = self.glyphs, max((Text(self.glyphs.line(name)).cell_len for name in names), default=0)
        for detail in reversed(_DETAIL):
            heads = ["progress", *VARIANTS, *(["tuned - base"] if "difference" in detail else [])]
            heads += [f"{g.wrong}{g.arrow}{g.done}", f"{g.done}{g.arrow}{g.wrong}"]
            heads += ["tokens"] if "tokens" in detail else []
            rows = [self._row(name, detail) for name in names]
            room = self.width - sum(GAP + max(map(len, column)) for column in zip(heads, *rows, strict=True))
            if room >= min(longest, 2 * SHORTEST_NAME):
                break
        table = Table("benchmark", *heads, box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
        for head, column in zip(["benchmark", *heads], table.columns, strict=True):
            column.no_wrap, column.overflow = True, g.overflow
            column.justify = "left" if head in ("benchmark", "progress", *VARIANTS, "tuned - base") else "right"
        for name, row in zip(names, rows, strict=True):
            table.add_row(self.cropped(Text(g.line(name)), max(SHORTEST_NAME, room)), *row)
        return table, detail

    def _row(self, name: str, detail: frozenset[str]) -> list[Text]:
        """How far the variants are (completions of each at the end), their accuracies, and what is known of both."""
        tally, glyphs, pending = self.state.tallies[name], self.glyphs, self.glyphs.pending
        begun = [bool(tally.done(variant)) for variant in VARIANTS]
        progress = Text(f"{int(100 * tally.share)} %")
        if not any(begun):
            progress = Text(pending, "dim")
        elif tally.share == 1:
            progress = Text(f"{tally.expected:,}", "dim")
        elif "bar" in detail:
            filled = int(tally.share * BAR)
            bar = Text(glyphs.bar[0] * filled, "cyan").append(glyphs.bar[1] * (BAR - filled), "dim")
            progress = bar.append("  ").append_text(progress)
        cells = [progress]
        for variant in VARIANTS:
            accuracy = tally.accuracy(variant, paired=True)
            shown = accuracy if "intervals" in detail else accuracy.partition(" [")[0]
            cells.append(Text(shown) if shown else Text(pending, "dim"))
        if "difference" in detail:
            cells.append(Text(tally.difference() or pending))
        cells += [Text(str(n) if all(begun) else pending) for n in (tally.gained, tally.lost)]
        if "tokens" in detail:
            cells.append(Text(tally.lengths(glyphs.arrow) or pending))
        return cells
