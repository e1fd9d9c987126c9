"""Writes docs/reference/recipe.md from the recipe's own docstrings: python tools/make_recipe_page.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from upft_mlx.recipe.evaluate import Benchmark
from upft_mlx.recipe.schema import Quantize, Recipe

HEADER = """# Recipe fields

A recipe is a YAML file. It states only what differs from these defaults; unknown fields are errors. On the command
line, `--set section.field=value` changes one field. Paths are relative to the recipe's folder. Written from the
docstrings of `upft_mlx/recipe/schema.py` by `tools/make_recipe_page.py`; do not edit.
"""


def page() -> str:
    """The whole page."""
    sections = {name: field for name, field in Recipe.model_fields.items() if _is_section(field)}
    top = {name: field for name, field in Recipe.model_fields.items() if name not in sections}
    parts = [HEADER, _table("Top level", "", top)]
    parts += [
        _table(f"`{name}`", field.annotation.__doc__, field.annotation.model_fields) for name, field in sections.items()
    ]
    parts.append(_table("An entry of `evaluate.benchmarks`", Benchmark.__doc__ or "", Benchmark.model_fields))
    parts.append(_table("`quantize`", Quantize.__doc__ or "", Quantize.model_fields))
    return "\n".join(parts)


def _is_section(field: Any) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _table(title: str, doc: str, fields: dict[str, Any]) -> str:
    lines = [f"## {title}\n", *([f"{doc}\n"] if doc else []), "| field | default | what it is |", "|---|---|---|"]
    for name, field in fields.items():
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {_default(field)} | {text} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    (Path(__file__).resolve().parent.parent / "docs/reference/recipe.md").write_text(page(), encoding="utf-8")
