"""What a recipe says about a dataset, what its readers hand on, and what they have to say about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from upft_mlx.errors import ProblemsError
from upft_mlx.quantities import many
from upft_mlx.recipe.evaluate import Benchmark
from upft_mlx.recipe.schema import Problems


class Place(NamedTuple):
    """Where a row stands: the line of a file, the row of a table, or both."""

    path: str
    line: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        path = f"{self.path}:{self.line}" if self.line else self.path
        return f"{path}: row {self.row}" if self.row else path


Row = dict[str, Any]
Located = tuple[Place, Row | ProblemsError]
"""A row's place, and its columns or why it has none."""
SKIP = "fix it, or leave such rows out with `bad_rows: skip` (`upft new`: --skip-bad-rows)"
"""The way out for a row that cannot be used."""
Source = Problems | Benchmark
"""The sections of a recipe that say where a dataset is and which columns to use."""


@dataclass
class Notes:
    """How a source was read, as far as somebody should know; filled while it is read."""

    said: list[str] = field(default_factory=list)
    """What is not obvious, each once: another separator, the form of its rows."""
    skipped: int = 0
    """Number of rows left out because they cannot be used."""
    first: str = ""
    """Why the first of them cannot."""

    def say(self, text: str) -> None:
        """Say it once."""
        if text not in self.said:
            self.said.append(text)

    def skip(self, error: ProblemsError) -> None:
        """Count a row that is left out."""
        self.first = self.first or error.without_remedy
        self.skipped += 1

    def lines(self) -> list[str]:
        """All of it, a line each."""
        left_out = f"left out {many(self.skipped, 'row')} that cannot be used; the first: {self.first}"
        return [*self.said, *([left_out] if self.skipped else [])]


def first_line(error: Exception) -> str:
    """The first line of another library's error, without the dot at its end: a remedy follows."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
