"""Writes docs/reference/commands.md from the commands' own help: python tools/make_commands_page.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from upft_mlx.cli.main import cli

WIDTH = 80
"""Columns of the help, whatever the terminal has: the page is the same everywhere."""

HEADER = """# Commands

What `upft COMMAND --help` says, for every command. RECIPE is a YAML file, the name of a shipped recipe, or a run
directory with its own settings; [recipe.md](recipe.md) lists its fields. Exit status: 0 done, 1 failed with a message,
2 usage or recipe error, 130 interrupted. Written by `tools/make_commands_page.py`; do not edit.
"""


def page() -> str:
    """The whole page."""
    helps = _helps(cli, click.Context(cli, info_name="upft", **cli.context_settings))
    return HEADER + "".join(f"\n## {name}\n\n```text\n{text}\n```\n" for name, text in helps)


def _helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """The name and the help of a command and of those below it, in the order of `--help`."""
    context.terminal_width = context.max_content_width = WIDTH
    yield context.command_path, "\n".join(line.rstrip() for line in context.get_help().splitlines())
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _helps(below, click.Context(below, info_name=name, parent=context, **below.context_settings))


if __name__ == "__main__":
    (Path(__file__).resolve().parent.parent / "docs/reference/commands.md").write_text(page(), encoding="utf-8")
