"""What is wrong with a recipe, in the words of its YAML: file, line, field, value, and what would be valid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from upft_mlx.errors import RecipeError
from upft_mlx.escape import one_line, quoted
from upft_mlx.recipe.fields import FieldError
from upft_mlx.recipe.schema import Recipe

ELSEWHERE = {
    "lr": "train.learning_rate",
    "iters": "train.steps",
    "max_steps": "train.steps",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "max_seq_length": "train.max_length",
    "steps_per_eval": "train.validate_every",
    "steps_per_report": "train.report_every",
    "save_every": "train.checkpoint_every",
    "lora_layers": "lora.num_layers",
    "r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.scale (alpha / rank)",
    "data": "problems.path",
    "alpha": "lora.scale (alpha / rank)",
    "target_modules": "lora.keys",
    "lora_parameters": "lora",
    "resume_adapter_file": "lora.start_from",
    "adapter_path": "lora.start_from",
    "from": "lora.start_from",
    "temp": "generate.temperature",
    "model_path": "model",
    "prefix_length": "prefix.length",
    "t": "prefix.length",
}
"""What other tools call a field."""


def describe(
    path: Path,
    lines: dict[tuple[Any, ...], int],
    error: dict[str, Any],
    patches: Sequence[dict[str, Any]],
) -> RecipeError:
    """One pydantic error as `file:line: section.field: value: what is wrong; what to do`."""
    loc = tuple(part for part in error["loc"] if not str(part).startswith("function-"))
    loc = loc[:3] if loc[:2] == ("prompt", "chat_template_args") else loc  # one error, not one per type
    own = error.get("ctx", {}).get("error")
    if isinstance(own, FieldError):
        loc = (*loc, *(part for part in own.field.split(".") if part))
        problem, remedy = one_line(own.problem, 800), one_line(own.remedy, 800)
    elif error["type"] in ("extra_forbidden", "invalid_key"):
        problem, remedy = "unknown field", _suggest(loc)
    elif error["type"] == "missing":
        problem, remedy = "missing, a recipe needs it", ""
    else:
        problem = f"{quoted(error['input'])}: {one_line(_in_yaml_terms(str(error['msg']), loc), 800)}"
        known = re.findall("'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
        near = difflib.get_close_matches(str(error["input"]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else ""
    by_option = False
    for value in patches:  # does one of the options hold something at `loc`?
        inside: Any = value
        for part in loc:
            here = inside if isinstance(inside, dict) else dict(enumerate(inside)) if isinstance(inside, list) else {}
            if part not in here:
                break
            inside = here[part]
        else:
            by_option = True
    line = next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)
    field = one_line(".".join(map(str, loc)))
    if by_option:
        return RecipeError(problem, remedy, field=field, path="--set")
    return RecipeError(problem, remedy, field=field, path=path, line=line)


def _in_yaml_terms(message: str, loc: tuple[Any, ...]) -> str:
    """A message of pydantic's without Python's names of things."""
    if loc[:2] == ("prompt", "chat_template_args") and len(loc) > 2:
        return "should be true, false, an integer or a text"
    if message.startswith("String should match pattern"):
        return "should be letters, digits, `.`, `_` and `-` only and begin with a letter or digit; set `name`"
    message = re.sub(r"^(Input|String|Tuple|List) should", "should", message)
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping of fields to values", message)
    message = message.replace("a valid tuple", "a list in brackets, as [a, b]").replace("a valid string", "a text")
    return message.replace("a valid boolean", "true or false")


def _suggest(loc: tuple[Any, ...]) -> str:
    """What it is called here; else the nearest valid name, another section's field of that name, or all names."""
    if elsewhere := ELSEWHERE.get(str(loc[-1])):
        return f"it is called {elsewhere!r} here"
    section: type[BaseModel] = Recipe
    for part in loc[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_type(section.model_fields[part].annotation) or section
    fields = list(section.model_fields)
    same = [f"{name}.{loc[-1]}" for name in Recipe.model_fields if loc[-1] in _fields_of(name)]
    near = same or difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    valid = f"valid here: {', '.join(fields)}"
    return f"did you mean {near[0]!r}? ({valid})" if near else valid


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


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_type(arg))), None)
