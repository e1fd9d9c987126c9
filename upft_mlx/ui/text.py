"""Numbers, names and untrusted texts as one line of terminal text, for both views; of Rich only what measures."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from upft_mlx.escape import plain

_COMMANDS = re.compile("`[^`\n]*`")
_LABEL = re.compile(r"\S* {2,}")
_JOINT, _SECOND = "\0", "\1"
"""Stand for a space at which a line is not broken, and the second column of a character; no text shown holds them."""
FLAT = 0.02
"""Share of its greatest value that the range of a plot has at least."""
_CLEANED = 4000
"""Characters looked at for a single line; a screen shows far fewer."""


@dataclass(frozen=True)
class Glyphs:
    """The signs that a console's encoding can show, and texts reduced to them."""

    encoding: str = "utf-8"
    done: str = "✓"
    wrong: str = "✗"
    running: str = "▸"
    pending: str = "·"
    arrow: str = "→"
    ellipsis: str = "…"
    bar: str = "━─"
    """What is done of a bar, and what is not."""
    interval: tuple[str, str, str] = ("├", "─", "┤")
    """An interval's beginning, what is between, and its end."""
    dot: str = "●"
    small: str = "•"
    zero: tuple[str, str] = ("│", "┼")
    """Zero beside an interval, and inside it."""

    @property
    def overflow(self) -> Literal["crop", "ellipsis"]:
        """What Rich does with what is too wide; its ellipsis is not ASCII."""
        return "crop" if self.encoding == "ascii" else "ellipsis"

    def line(self, text: str) -> str:
        """An untrusted text as one line without control characters."""
        return " ".join(self.lines(text[:_CLEANED]).split())

    def lines(self, text: str) -> str:
        """An untrusted text without control characters; newlines stay."""
        return plain(text).encode(self.encoding, "replace").decode(self.encoding)


def glyphs_for(encoding: str | None) -> Glyphs:
    """The signs for an encoding; ASCII unless it is UTF."""
    name = (encoding or "utf-8").lower()
    if name.startswith("utf"):
        return Glyphs()
    return Glyphs("ascii", "+", "x", ">", ".", "->", "...", "#-", ("[", "-", "]"), "o", ".", ("|", "+"))


def wrapped(text: str, width: int) -> str:
    """A text broken at spaces to lines of at most `width` columns; paths and what stands in backticks stay whole.

    What is longer than a line is left to the terminal, which keeps it whole for copying. What follows a label
    (`note      text`) or an indent stays aligned in the next lines.
    """
    joined = _COMMANDS.sub(lambda command: command[0].replace(" ", _JOINT), text)
    joined = "".join(char + _SECOND * (cell_len(char) - 1) for char in joined)  # textwrap counts characters
    lines = list[str]()
    for line in joined.split("\n"):
        label = _LABEL.match(line)
        under = " " * (label.end() if label and label.end() <= width // 2 else 0)
        lines += textwrap.wrap(
            line, width, subsequent_indent=under, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines).replace(_JOINT, " ").replace(_SECOND, "")


def interval_bar(value: float, low: float, high: float, widest: float, width: int, glyphs: Glyphs) -> str:
    """An interval on a line of `width` columns (odd) that reaches from -`widest` to `widest`, zero in its middle."""

    def place(x: float) -> int:
        return round((max(-1.0, min(1.0, x / widest if widest else 0.0)) + 1) / 2 * (width - 1))

    opening, inside, closing = glyphs.interval
    cells, left, right = [" "] * width, place(low), place(high)
    cells[left : right + 1] = [opening, *[inside] * (right - left - 1), closing] if right > left else [closing]
    middle = width // 2
    cells[middle] = glyphs.zero[left < middle < right]
    cells[place(value)] = glyphs.dot
    return "".join(cells)


def plot(curves: Sequence[tuple[str, Sequence[tuple[int, float]]]], last: int, width: int, height: int) -> list[str]:
    """Curves as `height` lines of `width` columns, drawn with a sign each, the greatest and least value on the left.

    Args:
        curves: sign, and (step, value) at steps from 1; what is not finite is left out.
        last: the step at the right edge.
        width: columns, the values included.
        height: lines.
    """
    finite = [(sign, [(x, y) for x, y in points if math.isfinite(y)]) for sign, points in curves]
    values = [y for _, points in finite for _, y in points]
    if not values or height < 2:
        return []
    low, high = min(values), max(values)
    if high - low < FLAT * abs(high):  # what is flat looks flat
        low, high = (low + high - FLAT * abs(high)) / 2, (low + high + FLAT * abs(high)) / 2
    labels = f"{high:.3f}", f"{low:.3f}"
    room = width - max(map(len, labels)) - 1
    if room < 2:
        return []
    cells = [[" "] * room for _ in range(height)]
    for sign, points in finite:
        for x, y in points:
            row = round((high - y) / (high - low) * (height - 1)) if high > low else height // 2
            cells[row][min(room - 1, round(x / max(1, last) * (room - 1)))] = sign
    lead = {0: labels[0], height - 1: labels[1]}
    return [f"{lead.get(row, ''):>{width - room - 1}} {''.join(line)}".rstrip() for row, line in enumerate(cells)]
