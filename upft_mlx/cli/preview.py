"""`upft preview`: the prompts and training rows of a recipe, before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from upft_mlx.cli.edge import cli, common, folder_of, helped, prepared, recipe_argument
from upft_mlx.escape import to_json


@cli.command(
    help=helped(
        "Show what RECIPE asks and trains on, before a run: the exact prompts of sampling and evaluation, some "
        "training rows token by token (supervised and masked), and the rules in plain sentences. If the run has rows, "
        "they are shown. Only the tokenizer is loaded; with --model the model is loaded as well, to measure how likely "
        "it finds the rows that it sampled: nats per token, by kind.",
        "upft preview quickstart",
        "upft preview my-recipe.yaml --rows 6 --set prefix.length=8",
        "upft preview quickstart --problem upft-0007",
        "upft preview my-recipe.yaml --model",
    )
)
@recipe_argument
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Rows to show.")
@click.option("--problem", metavar="ID", help="Show the prompt and the rows of this problem.")
@click.option("--model", "with_model", is_flag=True, help="Load the model and measure how likely it finds the rows.")
@common
def preview(
    recipe: str,
    rows: int,
    problem: str | None,
    with_model: bool,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    offline: bool,
    plain: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """See the help."""
    with prepared(recipe, overrides, offline=offline, debug=debug) as loaded:
        from upft_mlx.inspection.preview import preview as preview_of

        folder = folder_of(recipe, loaded, run_dir)
        facts: dict[str, Any] = preview_of(loaded, folder, rows=rows, problem=problem, model=with_model)
        if as_json:
            click.echo(to_json(facts))
            return
        from upft_mlx.ui.preview import print_preview

        print_preview(facts, plain=plain)
