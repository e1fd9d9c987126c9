"""A grid of settings: `prefix.length=8,16,32` several times, and the recipe of each combination."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from upft_mlx.errors import RecipeError
from upft_mlx.escape import one_line, quoted, to_json
from upft_mlx.recipe.load import validated
from upft_mlx.recipe.safe_yaml import read_yaml
from upft_mlx.recipe.schema import Recipe

Grid = Mapping[str, Sequence[Any]]
"""Values by field, `{"prefix.length": [8, 16]}`."""
Settings = Mapping[str, Any]
"""One combination, `{"prefix.length": 8}`."""

_NOT_TRAINED = ("name", "evaluate", "analyze", "compare", "publish")
"""Sections and fields that change nothing about the adapter, or how it is measured."""


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The grid of texts like `prefix.length=8,16,32`; a comma inside brackets or quotes separates no values.

    Raises:
        RecipeError: a text has another form, or a field is given twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        field, shown = field.strip(), one_line(text)
        if not equals or not all(field.split(".")):
            raise RecipeError("expected section.field=value,value, for example prefix.length=8,16,32", field=shown)
        if field in grid:
            raise RecipeError("is given twice", "list all values after one `=`", field=field)
        if not all(value.strip() for value in _split(values)):
            raise RecipeError("a value is missing", "list them between commas: prefix.length=8,16,32", field=shown)
        try:
            grid[field] = [read_yaml(value)[0] for value in _split(values)]
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            raise RecipeError("not valid values", "quote what is a text", field=shown) from None
    return grid


def _split(text: str) -> Iterator[str]:
    """The values between the commas that are in no brackets and no quotes."""
    start, depth, quote = 0, 0, ""
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def combinations(grid: Grid) -> list[dict[str, Any]]:
    """All combinations of a grid, the last field's values in the fastest turn.

    Raises:
        RecipeError: the grid is empty, a field changes nothing that is trained, or a value is missing or given twice.
    """
    if not grid:
        raise RecipeError("no settings to try", "name one with its values, for example prefix.length=8,16,32")
    for field, values in grid.items():
        if field.partition(".")[0] in _NOT_TRAINED:
            problem = "is not a training setting: its values could not be compared on the same problems"
            raise RecipeError(problem, f"set it for all runs with --set {field}=VALUE", field=field)
        told = [to_json(value, indent=None) for value in values]
        if not told:
            raise RecipeError("has no value", f"list them: {field}=VALUE,VALUE", field=field)
        if twice := [text for text in told if told.count(text) > 1]:
            raise RecipeError(f"{quoted(twice[0])} is given twice", field=field)
    return [json.loads(to_json(dict(zip(grid, values, strict=True)))) for values in itertools.product(*grid.values())]


def with_settings(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with these values.

    Raises:
        RecipeError: all that is wrong, one line each.
    """
    overrides = [f"{field}={to_json(value, indent=None)}" for field, value in settings.items()]
    return validated(Path(recipe.name), {}, recipe.dump(), overrides)


def all_valid(recipe: Recipe, tried: Iterable[Settings]) -> list[Recipe]:
    """The recipe of each of these settings.

    Raises:
        RecipeError: the errors of all of them.
    """
    made, errors = list[Recipe](), list[RecipeError]()
    for settings in tried:
        try:
            made.append(with_settings(recipe, settings))
        except RecipeError as error:
            for each in error.each or (error,):
                each.path = "" if each.path == "--set" else each.path  # the field is one of the grid's
                errors.append(each)
    if errors:
        raise RecipeError.of_all(errors)
    return made


def in_words(settings: Settings) -> str:
    """`prefix.length=8 train.learning_rate=0.0001`."""
    return " ".join(
        f"{field}={value if isinstance(value, str) else to_json(value, indent=None)}"
        for field, value in settings.items()
    )
