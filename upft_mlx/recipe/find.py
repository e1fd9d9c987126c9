"""Finding a recipe: a path, or the name of one that ships."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path

from upft_mlx.errors import RecipeError, UnknownRecipeError

_DATA = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz")
"""Endings of datasets."""


def shipped_recipes() -> dict[str, Path]:
    """The recipes inside the package (a wheel) or beside it (a checkout), by name."""
    package = Path(__file__).resolve().parent.parent
    folders = (package / "recipe" / "shipped", package.parent / "recipes")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        UnknownRecipeError: there is neither; names the nearest shipped one.
        RecipeError: it is a folder, or cannot be read.
    """
    path = Path(path_or_name)
    if str(path_or_name).startswith("builtin:"):
        raise RecipeError("a model, not a recipe", _for_model(str(path_or_name)), path=path_or_name)
    try:
        if path.is_file():
            if path.suffix.lower() in _DATA:
                remedy = f"`upft new MODEL {shlex.quote(str(path))}` writes a recipe for it"
                raise RecipeError("a dataset, not a recipe", remedy, path=path)
            return path
        if path.is_dir() and str(path_or_name) not in shipped_recipes():
            if (path / "config.json").is_file():
                raise RecipeError("a model, not a recipe", _for_model(str(path)), path=path)
            raise RecipeError("is a folder, not a recipe", "name a .yaml file", path=path)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", path=path) from None
    return find_shipped(str(path_or_name), "no such recipe file, and no shipped recipe of that name")


def _for_model(model: str) -> str:
    """The remedy if a model was given as a recipe."""
    shown = shlex.quote(model)
    return f"`upft new {shown} my-questions.csv` writes a recipe for it, `upft ask --model {shown}` asks it"


def find_shipped(name: str, problem: str = "no shipped recipe of that name") -> Path:
    """The file of a shipped recipe.

    Raises:
        UnknownRecipeError: there is none of this name: the `problem`, with what may have been meant.
    """
    shipped, missing = shipped_recipes(), Path(name)
    if name in shipped:
        return shipped[name]
    beside = {path.stem: str(path) for path in sorted((*missing.parent.glob("*.yaml"), *missing.parent.glob("*.yml")))}
    near = difflib.get_close_matches(missing.stem, {**beside, **shipped}, n=1)
    remedy = "`upft recipes` lists those that ship, `upft new` writes one for your own questions"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not missing.parent.exists() and not missing.suffix.startswith(".y"):
        remedy = f"if it is a model on the Hub: {_for_model(name)}"
    elif near:
        shown = f"the shipped recipe {near[0]!r}" if near[0] in shipped else repr(beside[near[0]])
        remedy = f"did you mean {shown}?"
    raise UnknownRecipeError(problem, remedy, path=name)
