"""`upft recipes` and `fetch`: what there is before a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli_base import cli, common, edge, helped, recipe_argument, run_other

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
@recipe_argument
@common
def fetch(recipe: str, **options: Any) -> None:
    """See the help."""

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx.fetch import fetch

        return fetch(loaded, notify)

    run_other(recipe, work, lambda facts: "complete; --offline now runs every command of this recipe", **options)


@cli.command(help=helped("List the shipped recipes.", "upft recipes"))
def recipes() -> None:
    """See the help."""
    from upft_mlx.load import load_recipe, shipped_recipes

    with edge(debug=False):
        for name, path in shipped_recipes().items():
            recipe = load_recipe(path)
            click.echo(f"{name:20} {recipe.model}, {recipe.method}; {path}")
