"""The shipped recipes as a list, with what their header comments say about them.

    # Qwen2.5-0.5B-Instruct on GSM8K: ...
    #
    #   command: upft run qwen2.5-0.5b-gsm8k
    #   Mac:     8 GB; a guess from sizes, not measured
    #            a longer value continues on lines that are indented further

The part of `Mac` and `time` before the first semicolon is short enough for a table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from upft_mlx.quantities import many
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Recipe


@dataclass(frozen=True)
class Shipped:
    """A shipped recipe."""

    name: str
    path: Path
    recipe: Recipe
    comment: HeaderComment

    @property
    def problems(self) -> str:
        """What the problems are: a Hub id, a file or the embedded ones, and how many at most."""
        section = self.recipe.problems
        source = section.dataset or section.path or f"embedded {section.builtin}"
        return f"{source}, {many(section.limit, 'problem')}" if section.limit else source

    @property
    def method(self) -> str:
        """The method, and for UPFT the length of its prefixes (tokens)."""
        recipe = self.recipe
        return f"{recipe.method}, t = {recipe.prefix.length}" if recipe.method == "upft" else recipe.method

    def facts(self) -> dict[str, str]:
        """As plain values, for JSON and tables."""
        return {
            "name": self.name,
            "title": self.comment.title,
            "model": self.recipe.model,
            "method": self.method,
            "problems": self.problems,
            **{key.lower(): value for key, value in self.comment.entries.items()},
            "path": str(self.path),
        }


def catalogue() -> list[Shipped]:
    """All shipped recipes: the quickstart first, then those for smaller Macs before those for larger ones.

    Raises:
        RecipeError: one cannot be read.
    """
    paths = shipped_recipes().items()
    found = [Shipped(name, path, load_recipe(path), read_comment(path.read_text("utf-8"))) for name, path in paths]
    memory = {item.name: item.comment.short("Mac").partition(" ")[0] for item in found}  # "8" of "8 GB", "any" of any
    size = {name: int(text) if text.isdigit() else 0 for name, text in memory.items()}
    return sorted(found, key=lambda item: (item.name != "quickstart", size[item.name], item.name))


KEYS = ("command", "Mac", "disk", "time", "numbers", "sources", "licence")
"""What each header has."""
_ENTRY = re.compile(r"# {3}(\w+):\s+(\S.*)")
_CONTINUED = re.compile(r"# {4,}(\S.*)")


@dataclass(frozen=True)
class HeaderComment:
    """What the comment at the head of a recipe says."""

    title: str
    """The first line, without its full stop."""
    entries: dict[str, str] = field(default_factory=dict)
    """Values by key, each on one line."""

    def short(self, key: str) -> str:
        """A value up to its first semicolon; empty where there is none."""
        return self.entries.get(key, "").partition(";")[0].strip()


def read_comment(text: str) -> HeaderComment:
    """The header of a recipe's text; without one, an empty one."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.rstrip())
    entries: dict[str, str] = {}
    key = None
    for line in lines[1:]:
        if entry := _ENTRY.fullmatch(line):
            key = entry[1]
            entries[key] = entry[2]
        elif key and (more := _CONTINUED.fullmatch(line)):
            entries[key] += f" {more[1]}"
        else:
            key = None
    return HeaderComment(lines[0].lstrip("# ").rstrip(".") if lines else "", entries)
