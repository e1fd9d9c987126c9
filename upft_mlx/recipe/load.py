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
from upft_mlx.escape import one_line, quoted
from upft_mlx.recipe.safe_yaml import read_yaml
from upft_mlx.recipe.schema import Recipe

_LARGEST = 256 * 1024
"""Bytes of a recipe; PyYAML reads some 100 KB a second."""
_TOLD = 30
"""Errors of a recipe that are told at once."""


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the shipped one of that name, with `section.field=value` overrides.

    Paths inside the file are relative to its folder, paths inside overrides to the working directory.

    Raises:
        RecipeError: with one line per error, each with file, line, field, value and what would be valid.
    """
    path = find_recipe(path_or_name)
    text = _read(path)
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
        problems = [_describe(path, lines, dict(item), patches) for item in error.errors()]
        told = list(dict.fromkeys(problems))
        more = [f"and {len(told) - _TOLD} more errors"] if len(told) > _TOLD else []
        raise RecipeError("\n".join([*told[:_TOLD], *more])) from None


def shipped_recipes() -> dict[str, Path]:
    """The recipes inside the package (a wheel) or beside it (a checkout), by name."""
    package = Path(__file__).resolve().parent.parent
    folders = (package / "recipe" / "shipped", package.parent / "recipes")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        RecipeError: if there is neither, with the nearest shipped name.
    """
    path = Path(path_or_name)
    try:
        if path.is_file():
            return path
        if path.is_dir() and str(path_or_name) not in shipped_recipes():
            raise RecipeError(f"{path}: is a folder, not a recipe; name a .yaml file")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    return find_shipped(str(path_or_name), "no such recipe file, and no shipped recipe of that name")


def find_shipped(name: str, problem: str = "no shipped recipe of that name") -> Path:
    """The file of a shipped recipe.

    Raises:
        RecipeError: there is none of this name: the `problem`, with the nearest one.
    """
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise RecipeError(f"{name}: {problem}; {_nearest(Path(name), shipped)}")


def _nearest(missing: Path, shipped: dict[str, Path]) -> str:
    """What may have been meant: a shipped recipe, a file beside the missing one; else where recipes come from."""
    beside = {path.stem: str(path) for path in sorted((*missing.parent.glob("*.yaml"), *missing.parent.glob("*.yml")))}
    near = difflib.get_close_matches(missing.stem, {**beside, **shipped}, n=1)
    if near and near[0] in shipped:
        return f"did you mean the shipped recipe {near[0]!r}?"
    if near:
        return f"did you mean {beside[near[0]]!r}?"
    return "`upft recipes` lists those that ship, `upft new` writes one for your own questions"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise RecipeError(f"{path}: not a recipe: larger than {_LARGEST // 1024} KB")
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(path: Path, text: str) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        data, node = read_yaml(text)
        _refuse_duplicates(path, node)
    except yaml.YAMLError as error:
        raise RecipeError(_not_yaml(path, text, error)) from None
    except RecursionError:
        raise RecipeError(f"{path}: not a recipe: nested too deeply, or an alias (*) contains itself") from None
    except (ValueError, TypeError) as error:  # an explicit tag that does not fit, for example `!!int x`
        raise RecipeError(f"{path}: not valid YAML: {one_line(str(error))}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise RecipeError(f"{path}: a recipe is a mapping of fields to values, found {found}")
    return data, node


def _not_yaml(path: Path, text: str, error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{path}:{line}: not valid YAML: character {error.character:#04x}: {error.reason}"
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    return f"{where}: not valid YAML: {one_line(getattr(error, 'problem', None) or str(error))}"


def _refuse_duplicates(path: Path, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise RecipeError(
                    f"{path}:{line}: {one_line(str(key.value))} is given twice (first on line {seen[key.value]})"
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
        path = _absolute(model, folder, f"{where}: model")
        data["model"] = path if model.startswith((".", "/", "~")) or Path(path).is_dir() else model
    sections = [("problems.path", data.get("problems"))]
    if isinstance(evaluate := data.get("evaluate"), dict):
        benchmarks = evaluate.get("benchmarks")
        entries = benchmarks if isinstance(benchmarks, list) else []
        sections += [(f"evaluate.benchmarks.{index}.path", entry) for index, entry in enumerate(entries)]
    for field, section in sections:
        if isinstance(section, dict) and isinstance(given := section.get("path"), str):
            section["path"] = _absolute(given, folder, f"{where}: {field}")


def _absolute(path: str, folder: Path, where: str) -> str:
    try:
        absolute = (folder / Path(path).expanduser()).resolve()
        absolute.is_dir()  # a name that is too long for the file system fails here
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody`, a NUL, a name that is too long
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{where}: {quoted(path, 60)}: cannot be a path: {reason}") from None
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
            f"--set {one_line(override)}: expected section.field=value, for example train.learning_rate=1e-5"
        )
    try:
        value, _ = read_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        shown = f"--set {one_line(override)}: {quoted(text)}"
        raise RecipeError(f"{shown} is not a valid value; quote it if it is a text") from None
    patch: Any = value
    for key in reversed(keys):
        patch = {key: patch}
    resolve_paths(patch, Path.cwd(), "--set")
    _replace_source(data, patch)
    _merge(data, patch)
    return dict(patch)


def _replace_source(data: dict[str, Any], patch: dict[str, Any]) -> None:
    """`--set problems.path=...` replaces the recipe's own source instead of adding a second one."""
    sources = ("path", "dataset", "builtin")
    old, new = data.get("problems"), patch.get("problems")
    if isinstance(old, dict) and isinstance(new, dict) and any(source in new for source in sources):
        for source in sources:
            old.pop(source, None)


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


def _describe(
    path: Path,
    lines: dict[tuple[Any, ...], int],
    error: dict[str, Any],
    patches: Sequence[dict[str, Any]],
) -> str:
    """One pydantic error as `file:line: section.field: value: what is wrong; what to do`."""
    loc = tuple(part for part in error["loc"] if not str(part).startswith("function-"))
    loc = loc[:3] if loc[:2] == ("prompt", "chat_template_args") else loc  # one error, not one per type
    message = one_line(_in_yaml_terms(str(error["msg"]), loc), 800)
    if not loc:  # the fields of two sections do not fit: the message begins with the one to look at
        name, _, message = message.partition(": ")
        loc = tuple(name.split("."))
    where, field = _where(path, lines, loc, patches), one_line(".".join(map(str, loc)))
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"{where}: {field}: unknown field; {_suggest(loc)}"
    if error["type"] == "missing":
        return f"{where}: {field}: missing, a recipe needs it"
    if error["type"] == "value_error":
        return f"{where}: {field}: {message}"
    return f"{where}: {field}: {quoted(error['input'])}: {message}"


def _where(
    path: Path, lines: dict[tuple[Any, ...], int], loc: tuple[Any, ...], patches: Sequence[dict[str, Any]]
) -> str:
    if any(_reaches(patch, loc) for patch in patches):
        return "--set"
    line = next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)
    return f"{path}:{line}" if line else str(path)


def _reaches(value: Any, loc: tuple[Any, ...]) -> bool:
    """Whether nested mappings and lists hold something at `loc`."""
    for part in loc:
        here = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        if part not in here:
            return False
        value = here[part]
    return True


def _in_yaml_terms(message: str, loc: tuple[Any, ...]) -> str:
    """A message of pydantic's without Python's names of things."""
    if loc[:2] == ("prompt", "chat_template_args") and len(loc) > 2:
        return "should be true, false, an integer or a text"
    if message.startswith("String should match pattern"):
        return "should be letters, digits, `.`, `_` and `-` only and begin with a letter or digit; set `name`"
    message = message.removeprefix("Value error, ")
    message = re.sub(r"^(Input|String|Tuple|List) should", "should", message)
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping of fields to values", message)
    return message.replace("a valid tuple", "a list").replace("a valid string", "a text")


def _suggest(loc: tuple[Any, ...]) -> str:
    """The nearest valid name of a misspelt field, else all of them."""
    fields = _fields_at(loc[:-1])
    near = _in_another_section(loc) or difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    valid = f"valid here: {', '.join(fields)}"
    return f"did you mean {near[0]!r}? ({valid})" if near else valid


def _in_another_section(loc: tuple[Any, ...]) -> list[str]:
    """The sections' fields of exactly this name, as `section.field`."""
    return [f"{section}.{loc[-1]}" for section in Recipe.model_fields if loc[-1] in _fields_of(section)]


def field_names() -> list[str]:
    """What `--set` takes, as `field` or `section.field`, in the recipe's order."""
    names = []
    for section in Recipe.model_fields:
        inner = _fields_of(section)
        names += [f"{section}.{name}" for name in inner] if inner else [section]
    return names


def _fields_of(section: str) -> list[str]:
    kind = _section_type(Recipe.model_fields[section].annotation)
    return list(kind.model_fields) if kind else []


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
