"""`upft recipes` and `fetch`: what there is before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli_base import cli, common, edge, helped, run_other

if TYPE_CHECKING:
    from upft_mlx.events import Observer
    from upft_mlx.recipe import Recipe


@cli.command(
    help=helped(
        "Download what RECIPE needs from the Hugging Face Hub; says first how much room it takes. Afterwards every "
        "command runs with --offline.",
        "upft fetch my-recipe.yaml",
    )
)
@click.argument("recipe")
@common
def fetch(recipe: str, **options: Any) -> None:
    """See the help."""

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx.fetch import fetch

        return fetch(loaded, notify)

    run_other(recipe, work, lambda facts: "complete; --offline now runs every command of this recipe", **options)


@cli.command(
    help=helped(
        "List the shipped recipes: for which Mac, how long, which model on which problems. With a NAME, print that "
        "recipe, to read or to copy.",
        "upft recipes",
        "upft recipes quickstart > my-recipe.yaml",
    )
)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def recipes(name: str | None, as_json: bool) -> None:
    """See the help."""
    with edge(debug=False):
        if name is None:
            _list_recipes(as_json=as_json)
        else:
            _print_recipe(name, as_json=as_json)


def _list_recipes(*, as_json: bool) -> None:
    from upft_mlx.catalogue import catalogue

    rows = [item.facts() for item in catalogue()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from upft_mlx import ui

    ui.print_recipes(rows)


def _print_recipe(name: str, *, as_json: bool) -> None:
    """The text as it ships, or what it resolves to."""
    from upft_mlx.load import find_shipped, load_recipe

    path = find_shipped(name)
    click.echo(
        json.dumps(load_recipe(path).dump(), indent=2) if as_json else path.read_text(encoding="utf-8"), nl=as_json
    )
