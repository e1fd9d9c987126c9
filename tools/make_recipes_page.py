"""Writes docs/use/recipes.md from the headers of the shipped recipes: python tools/make_recipes_page.py"""

from __future__ import annotations

from pathlib import Path

from upft_mlx.recipe.catalogue import Shipped, catalogue

HEADER = """# Shipped recipes

`upft run NAME` runs one, `upft recipes` lists them, `upft recipes NAME > my-recipe.yaml` saves a copy to edit. For
your own model and data see [own-data.md](own-data.md). Written from the recipes' header comments by
`tools/make_recipes_page.py`; do not edit.

None of these recipes has been run on a Mac yet, and only the quickstart and the demo have been run at all. What was not
measured is marked. Ids and columns were looked up in public code and pages, because we had no access to the Hub.
"""


def page() -> str:
    """The whole page."""
    items = catalogue()
    lines = ["| recipe | Mac | time | model | problems | method |", "|---|---|---|---|---|---|", *map(_row, items)]
    return "\n".join([HEADER, *lines, "", *(_section(item) for item in items)])


def _row(item: Shipped) -> str:
    short = (item.comment.short(key) for key in ("Mac", "time"))
    cells = (f"[{item.name}](#{_anchor(item.name)})", *short, f"`{item.recipe.model}`", item.problems, item.method)
    return f"| {' | '.join(cells)} |"


def _section(item: Shipped) -> str:
    entries = [f"- **{key}**: {_text(key, value)}" for key, value in item.comment.entries.items()]
    return "\n".join([f"## {item.name}\n", f"{item.comment.title}.\n", *entries, ""])


def _text(key: str, value: str) -> str:
    return f"`{value}`" if key == "command" and "(" not in value else value


def _anchor(name: str) -> str:
    """What GitHub makes of a heading."""
    return name.replace(".", "")


if __name__ == "__main__":
    (Path(__file__).resolve().parent.parent / "docs/use/recipes.md").write_text(page(), encoding="utf-8")
