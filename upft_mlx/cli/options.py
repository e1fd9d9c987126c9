"""The options that all commands share, and how a command's help is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from upft_mlx.cli.complete import complete_fields, complete_targets
from upft_mlx.escape import half


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[__name__] = value


def verbose() -> bool:
    """Whether the command was asked to say everything."""
    return bool(click.get_current_context().meta.get(__name__))


verbose_option = click.option(
    "--verbose",
    "-v",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Show all notes, each stage's cost and what training did.",
)


class PathOption(click.Path):
    """A path that is valid UTF-8: neither MLX nor a JSON file accepts any other."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse any other path before a stage starts."""
        if half(str(value)):
            self.fail(f"{os.fsencode(value)!r} is not UTF-8; use another name", param, ctx)
        return super().convert(value, param, ctx)


_COMMON = (
    click.option("--run-dir", type=PathOption(), help="Folder of the run.  [default: runs/NAME]"),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.FIELD=VALUE",
        shell_complete=complete_fields,
        help="Change a field of the recipe; may be repeated.",
    ),
    click.option("--offline", is_flag=True, help="Use no network; missing files are an error."),
    click.option("--plain", is_flag=True, help="Print lines instead of a live view."),
    verbose_option,
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)
recipe_argument = click.argument("recipe", shell_complete=complete_targets)
"""RECIPE of a command: a file, a shipped name, or a run; the shell completes all three."""


@dataclass(frozen=True)
class Options:
    """The options that all commands on a recipe have."""

    run_dir: Path | None
    overrides: Sequence[str]
    """`section.field=value`."""
    offline: bool
    plain: bool
    as_json: bool
    debug: bool


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets them as `options`."""

    @wraps(command)
    def with_options(**given: Any) -> None:
        own = Options(**{field.name: given.pop(field.name) for field in fields(Options)})
        command(options=own, **given)

    for option in reversed(_COMMON):
        with_options = option(with_options)
    return with_options


def helped(text: str, *examples: str) -> str:
    r"""A command's help: what it does, then examples that click must not rewrap (`\b`)."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"{text}\n\n\b\nExample{'s' if len(examples) > 1 else ''}:\n{lines}"
