"""Reading a recipe: YAML, overrides, paths, and every error in one message."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from upft_mlx.errors import RecipeError
from upft_mlx.escape import one_line, quoted
from upft_mlx.recipe.find import find_recipe
from upft_mlx.recipe.messages import describe
from upft_mlx.recipe.safe_yaml import read_yaml
from upft_mlx.recipe.schema import Recipe

_LARGEST = 256 * 1024
"""Bytes of a recipe; PyYAML reads some 100 KB a second."""


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the shipped one of that name, with `section.field=value` overrides.

    Paths inside the file are relative to its folder, paths inside overrides to the working directory.

    Raises:
        RecipeError: with one line per error, each with file, line, field, value and what would be valid.
    """
    path = find_recipe(path_or_name)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise RecipeError(f"not a recipe: larger than {_LARGEST // 1024} KB", path=path)
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"not a text file (byte {error.start} is not UTF-8)", path=path) from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", path=path) from None
    data, node = _parse(path, text)
    resolve_paths(data, path.parent, str(path))
    data.setdefault("name", path.stem)
    return validated(path, _lines(node), data, overrides)


def validated(path: Path, lines: dict[tuple[Any, ...], int], data: dict[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe of these fields with overrides.

    Args:
        path: what errors name as the place of a field.
        lines: the line of each field there.
        data: the fields.
        overrides: `section.field=value`.

    Raises:
        RecipeError: all that is wrong, one line each.
    """
    patches = [_override(data, override) for override in overrides]
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError.of_all([describe(path, lines, dict(item), patches) for item in error.errors()]) from None


def _parse(path: Path, text: str) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        data, node = read_yaml(text)
        _refuse_duplicates(path, node)
    except yaml.reader.ReaderError as error:
        problem = f"not valid YAML: character {error.character:#04x}: {error.reason}"
        raise RecipeError(problem, path=path, line=text.count("\n", 0, error.position) + 1) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"not valid YAML: {one_line(getattr(error, 'problem', None) or str(error))}"
        raise RecipeError(problem, path=path, line=mark.line + 1 if mark else None) from None
    except RecursionError:
        raise RecipeError("not a recipe: nested too deeply, or an alias (*) contains itself", path=path) from None
    except (ValueError, TypeError) as error:  # an explicit tag that does not fit, for example `!!int x`
        raise RecipeError(f"not valid YAML: {one_line(str(error))}", path=path) from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise RecipeError(f"a recipe is a mapping of fields to values, found {found}", path=path)
    return data, node


def _refuse_duplicates(path: Path, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise RecipeError(
                    f"{one_line(str(key.value))} is given twice (first on line {seen[key.value]})", path=path, line=line
                )
            seen[key.value] = line
            _refuse_duplicates(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(path, value)


def resolve_paths(data: dict[str, Any], folder: Path, where: str) -> None:
    """Make the paths in `data` absolute, relative ones starting at `folder`.

    Raises:
        RecipeError: what cannot be a path; `where` is what the error names.
    """
    if isinstance(model := data.get("model"), str) and model:
        path = _absolute(model, folder, where, "model")
        data["model"] = path if model.startswith((".", "/", "~")) or Path(path).exists() else model
    sections = [("problems.path", data.get("problems"))]
    if isinstance(evaluate := data.get("evaluate"), dict):
        benchmarks = evaluate.get("benchmarks")
        entries = [benchmarks] if isinstance(benchmarks, dict) else benchmarks if isinstance(benchmarks, list) else []
        sections += [(f"evaluate.benchmarks.{index}.path", entry) for index, entry in enumerate(entries)]
    sections += [("prompt.chat_template", data.get("prompt")), ("lora.start_from", data.get("lora"))]
    for field, section in sections:
        name = field.rpartition(".")[2]
        if isinstance(section, dict) and isinstance(given := section.get(name), str):
            section[name] = _absolute(given, folder, where, field)


def _absolute(path: str, folder: Path, where: str, field: str) -> str:
    try:
        absolute = (folder / Path(path).expanduser()).resolve()
        absolute.is_dir()  # a name that is too long for the file system fails here
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody`, a NUL, a name that is too long
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{quoted(path, 60)}: cannot be a path: {reason}", field=field, path=where) from None
    return str(absolute)


def _override(data: dict[str, Any], override: str) -> dict[str, Any]:
    """Apply one `section.field=value`; the value is read as YAML.

    Returns:
        The override as nested mappings.
    """
    field, equals, text = override.partition("=")
    keys = field.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(
            "expected section.field=value, for example train.learning_rate=1e-5", field=f"--set {one_line(override)}"
        )
    if any(key.isdecimal() for key in keys[1:]):  # as errors name the entries of a list
        whole = ".".join(itertools.takewhile(lambda key: not key.isdecimal(), keys))
        problem, option = "an entry of a list cannot be set alone", f"--set {one_line(override)}"
        raise RecipeError(problem, f"set all of it: --set '{one_line(whole)}=[..., ...]'", field=option)
    try:
        value, _ = read_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        problem, option = f"{quoted(text)} is not a valid value", f"--set {one_line(override)}"
        raise RecipeError(problem, "quote it if it is a text", field=option) from None
    patch: Any = value
    for key in reversed(keys):
        patch = {key: patch}
    resolve_paths(patch, Path.cwd(), "--set")
    sources = ("path", "dataset", "builtin")  # `problems.path=...` replaces the recipe's own source, adds no second one
    old, new = data.get("problems"), patch.get("problems")
    if isinstance(old, dict) and isinstance(new, dict) and any(source in new for source in sources):
        for source in sources:
            old.pop(source, None)
    _merge(data, patch)
    return dict(patch)


def _merge(data: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _merge(data[key], value)
        else:
            data[key] = value


def _lines(root: yaml.Node | None) -> dict[tuple[Any, ...], int]:
    """The line (from 1) of each key of a YAML text, by its path."""

    def walk(node: yaml.Node | None, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield (*path, key.value), key.start_mark.line + 1
                yield from walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield (*path, index), value.start_mark.line + 1
                yield from walk(value, (*path, index))

    return dict(walk(root, ()))
