"""Recipes made on the command line: for a model without a recipe, and a recipe's benchmarks narrowed down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from upft_mlx.errors import RecipeError
from upft_mlx.escape import plain_name
from upft_mlx.recipe.load import resolve_paths, validated
from upft_mlx.recipe.schema import Recipe


def recipe_for_model(model: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe that only evaluates a model, with `section.field=value` overrides; on arithmetic unless they say more.

    Args:
        model: a folder, a Hub id or `builtin:arithmetic`.
        overrides: as for `load_recipe`.

    Raises:
        RecipeError: as `load_recipe`.
    """
    name = plain_name(Path(model).name, "model")
    data: dict[str, Any] = {"name": f"evaluate-{name}", "model": model, "problems": {"builtin": "arithmetic"}}
    resolve_paths(data, Path.cwd(), "--model")
    recipe = validated(Path("--model"), {}, data, overrides)
    return recipe if recipe.evaluate.benchmarks else with_benchmarks(recipe, ["arithmetic"])


def with_benchmarks(
    recipe: Recipe, benchmarks: Sequence[str] = (), limit: int | None = None, subset: Sequence[str] = ()
) -> Recipe:
    """The recipe with other benchmarks, or fewer of their problems, as the command line asks for.

    Args:
        recipe: the recipe.
        benchmarks: names of known benchmarks or local files, instead of the recipe's; empty: the recipe's.
        limit: maximum number of problems of each benchmark, from the first.
        subset: `level=5`, `subject=algebra`; several values of one field are all taken.

    Raises:
        RecipeError: an option has another form, or a benchmark is given twice.
    """
    data = recipe.dump()
    evaluate = data["evaluate"]
    if benchmarks:
        evaluate["benchmarks"] = _entries(benchmarks)
    chosen: dict[str, list[str]] = {}
    for option in subset:
        field, equals, value = option.partition("=")
        if not equals or not value.strip() or field.strip() not in ("level", "subject"):
            raise RecipeError("expected level=VALUE or subject=VALUE, for example level=5", field=f"--subset {option}")
        chosen.setdefault(field.strip(), []).append(value.strip())
    for entry in evaluate["benchmarks"]:
        entry["limit"] = entry.get("limit") if limit is None else limit
        entry["subset"] = chosen or entry.get("subset") or {}
    return validated(Path("--benchmark"), {}, data, ())


def _entries(benchmarks: Sequence[str]) -> list[dict[str, str]]:
    """Entries of these names and files, each with a label of its own that can name a folder."""
    entries: list[dict[str, str]] = []
    taken = {"summary.json", *(name.casefold() for name in benchmarks if not _is_file(name))}
    for given in benchmarks:
        path = {"path": str(Path(given).resolve())} if _is_file(given) else {}
        entry = {"name": Path(given).stem if path else given, **path}
        if entry in ({name: value for name, value in other.items() if name != "label"} for other in entries):
            raise RecipeError("is given twice", "give each once", field=f"--benchmark {given}")
        label = re.sub(r"[/\\]|^\.|^$", "_", entry["name"])
        if path:
            numbered = chain([label], (f"{label}-{number}" for number in count(2)))
            label = next(one for one in numbered if one.casefold() not in taken)
            taken.add(label.casefold())
        entries.append({**entry, "label": label} if label != entry["name"] else entry)
    return entries


def _is_file(name: str) -> bool:
    return bool(Path(name).suffix) and Path(name).is_file()


def with_rule(recipe: Recipe, selection: str) -> Recipe:
    """The recipe with the rule that `prefix.selection: auto` has taken; its structure rows are right ones."""
    return recipe.having("prefix", selection=selection, structure="checked")
