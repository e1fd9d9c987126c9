"""Reading a recipe: finding the file, YAML, overrides, and every error in one message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from upft_mlx.errors import RecipeError
from upft_mlx.recipe import Recipe

_NUMBER = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)[eE][-+]?[0-9]+
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class _Loader(yaml.SafeLoader):
    """A private loader: PyYAML reads `1e-5` as text, and mlx-lm changes the shared one when imported."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the shipped one of that name, with `section.field=value` overrides.

    Paths inside the file are relative to its folder, paths inside overrides to the working directory.

    Raises:
        RecipeError: with one line per error, each with file, line, field, value and what would be valid.
    """
    path = find_recipe(path_or_name)
    text = _read(path)
    data = _parse(path, text)
    _resolve_paths(data, path.parent)
    data.setdefault("name", path.stem)
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = _lines(text)
        problems = [_describe(path, lines, dict(item), overrides) for item in error.errors()]
        raise RecipeError("\n".join(problems)) from None


def shipped_recipes() -> dict[str, Path]:
    """The recipes inside the package (a wheel) or beside it (a checkout), by name."""
    package = Path(__file__).resolve().parent
    folders = (package / "recipes", package.parent / "recipes")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        RecipeError: if there is neither, with the nearest shipped name.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder, not a recipe; name a .yaml file")
    shipped = shipped_recipes()
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean the shipped recipe {near[0]!r}?" if near else f"shipped recipes: {', '.join(shipped)}"
    raise RecipeError(f"{path}: no such recipe file, and no shipped recipe of that name; {hint}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader: it builds plain values only
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise RecipeError(f"{path}: a recipe is a mapping of fields to values, found {found}")
    _refuse_duplicates(path, node)
    return data


def _refuse_duplicates(path: Path, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise RecipeError(f"{path}:{line}: {key.value} is given twice (first on line {seen[key.value]})")
            seen[key.value] = line
            _refuse_duplicates(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(path, value)


def _resolve_paths(data: dict[str, Any], folder: Path) -> None:
    """Make the paths in `data` absolute, relative ones starting at `folder`."""
    if isinstance(model := data.get("model"), str) and _is_path(model, folder):
        data["model"] = _absolute(model, folder)
    sections = [data.get("problems")]
    if isinstance(evaluate := data.get("evaluate"), dict):
        benchmarks = evaluate.get("benchmarks")
        sections += benchmarks if isinstance(benchmarks, list) else []
    for section in sections:
        if isinstance(section, dict) and isinstance(path := section.get("path"), str):
            section["path"] = _absolute(path, folder)


def _is_path(model: str, folder: Path) -> bool:
    return model.startswith((".", "/", "~")) or (bool(model) and (folder / model).is_dir())


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one `section.field=value`; the value is read as YAML."""
    field, equals, text = override.partition("=")
    keys = field.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override}: expected section.field=value, for example train.learning_rate=1e-5")
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader: it builds plain values only
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: {text!r} is not a valid value") from None
    patch: Any = value
    for key in reversed(keys):
        patch = {key: patch}
    _resolve_paths(patch, Path.cwd())
    if keys[0] == "problems":
        _replace_source(data, keys)
    _merge(data, patch)


def _replace_source(data: dict[str, Any], keys: list[str]) -> None:
    """`--set problems.path=...` replaces the recipe's own source instead of adding a second one."""
    sources = ("path", "dataset", "builtin")
    if isinstance(section := data.get("problems"), dict) and keys[-1] in sources:
        for source in sources:
            section.pop(source, None)


def _merge(data: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _merge(data[key], value)
        else:
            data[key] = value


def _lines(text: str) -> dict[tuple[Any, ...], int]:
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

    return dict(walk(yaml.compose(text, Loader=_Loader), ()))


def _describe(
    path: Path, lines: dict[tuple[Any, ...], int], error: dict[str, Any], overrides: Sequence[str]
) -> str:
    """One pydantic error as `file:line: section.field: value: what is wrong; what to do`."""
    loc = tuple(part for part in error["loc"] if not str(part).startswith("function-"))
    field = ".".join(map(str, loc)) or "recipe"
    if any(o.partition("=")[0].strip() == field for o in overrides):
        where = "--set"
    else:
        line = next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)
        where = f"{path}:{line}" if line else str(path)
    if error["type"] == "extra_forbidden":
        return f"{where}: {field}: unknown field; {_suggest(loc)}"
    if error["type"] == "missing":
        return f"{where}: {field}: missing, a recipe needs it"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    if error["type"] == "value_error":
        return f"{where}: {field}: {message}"
    return f"{where}: {field}: {error['input']!r}: {message}"


def _suggest(loc: tuple[Any, ...]) -> str:
    """The nearest valid name of a misspelt field, else all of them."""
    fields = _fields_at(loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    valid = f"valid here: {', '.join(fields)}"
    return f"did you mean {near[0]!r}? ({valid})" if near else valid


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in loc:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_type(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_type(arg))), None)
