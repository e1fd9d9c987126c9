"""The commands before a run: `upft recipes`, `new`, `fetch`, `plan` and `preview`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.edge import edge, folder_of, prepared, quiet_libraries, run_other
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import Options, PathOption, common, helped, recipe_argument, verbose
from upft_mlx.escape import to_json

if TYPE_CHECKING:
    from upft_mlx.events import Observer
    from upft_mlx.recipe.schema import Recipe


@cli.command(
    help=helped(
        "Download what RECIPE needs from the Hugging Face Hub; shows first how much disk space it takes. Afterwards "
        "RECIPE runs with --offline.",
        "upft fetch my-recipe.yaml",
    )
)
@recipe_argument
@common
def fetch(recipe: str, options: Options) -> None:
    """See the help."""

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx.hub.fetch import fetch

        return fetch(loaded, notify)

    run_other(recipe, work, lambda facts: "complete; this recipe now runs with --offline", options)


@cli.command(
    help=helped(
        "List the shipped recipes: for which Mac, how long they take, which model and problems. With a NAME, print "
        "that recipe to read or copy.",
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
            from upft_mlx.recipe.catalogue import catalogue
            from upft_mlx.ui.tables import print_recipes

            rows = [item.facts() for item in catalogue()]
            click.echo(to_json(rows)) if as_json else print_recipes(rows)
            return
        from upft_mlx.recipe.find import find_shipped
        from upft_mlx.recipe.load import load_recipe

        path = find_shipped(name)
        click.echo(to_json(load_recipe(path).dump()) if as_json else path.read_text(encoding="utf-8"), nl=as_json)


@cli.command(
    help=helped(
        "Write a recipe for MODEL (a folder, a Hub id, or builtin:arithmetic, the demo's model) and DATASET (a .jsonl, "
        ".json, .csv, .tsv or .parquet file, or a Hub id): finds the columns, sets aside test questions from a "
        "local file, chooses the settings, and writes the reason next to each.",
        "upft new my-model my-questions.jsonl",
        "upft new my-model openai/gsm8k --config main --output my-recipe.yaml",
    )
)
@click.argument("model")
@click.argument("dataset")
@click.option("--output", "-o", type=PathOption(), help="The recipe's file.  [default: the dataset's name]")
@click.option(
    "--question",
    metavar="COLUMN",
    help="The question's column, if it has an unusual name; `input.text` if it is nested.",
)
@click.option("--answer", metavar="COLUMN", help="The answer's column, if it has an unusual name.")
@click.option("--id", metavar="COLUMN", help="The id's column; `none` numbers the rows.")
@click.option("--skip-bad-rows", is_flag=True, help="Leave out rows that cannot be used; says how many.")
@click.option("--config", help="The Hub dataset's configuration.")
@click.option("--split", help="The Hub dataset's split.  [default: train]")
@click.option(
    "--holdout",
    type=click.IntRange(min=0),
    metavar="N",
    help="Test questions to set aside from a local file.  [default: a fifth of those with an answer, at most 200]",
)
@click.option("--thinking", is_flag=True, help="Keep thinking on if the model can switch it; the default is off.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--offline", is_flag=True, help="Use no network; missing files are an error.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def new(offline: bool, as_json: bool, debug: bool, **wishes: Any) -> None:
    """See the help."""
    quiet_libraries()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # what is read of the Hub here is small
    with edge(debug=debug):
        from upft_mlx.models.hub import go_offline, is_offline

        if offline or is_offline():  # each library has its own switch
            go_offline()
        from upft_mlx.new.new import Wish, facts, new_recipe
        from upft_mlx.new.text import told

        draft = new_recipe(Wish(**wishes))
        if as_json:
            click.echo(to_json(facts(draft)))
            return
        from upft_mlx.ui import views

        views.print_text(told(draft))


_MEMORY = click.FloatRange(min=1)
_MEMORY.name = "number of GB"  # for the message on a wrong value


@cli.command(
    help=helped(
        "Estimate what RECIPE will cost, before you run it: tokens to sample and train on (also for SFT and "
        "RFT), peak memory of each stage against your machine, disk, and time. To estimate the time, the model runs a "
        "short trial of about ten seconds; its result is kept.",
        "upft plan my-recipe.yaml",
        "upft plan qwen2.5-math-7b-math12k --mac 16",
        "upft plan my-recipe.yaml --set train.micro_batch_size=auto --no-calibration",
    )
)
@recipe_argument
@click.option("--mac", type=_MEMORY, metavar="GB", help="Plan for a Mac with this much memory.")
@click.option("--no-calibration", is_flag=True, help="Load nothing; no time estimate unless calibrated before.")
@common
def plan(recipe: str, mac: float | None, no_calibration: bool, options: Options) -> None:
    """See the help."""
    with prepared(recipe, options) as loaded:
        from upft_mlx.pipeline import plan_recipe
        from upft_mlx.ui import views
        from upft_mlx.ui.plan import print_plan

        with views.open_view(plain=options.plain, stderr=options.as_json, verbose=verbose()) as notify:
            found = plan_recipe(
                loaded, folder_of(recipe, loaded, options.run_dir), notify, mac=mac, calibrates=not no_calibration
            )
        if options.as_json:
            click.echo(to_json(found.dump()))
        else:
            print_plan(found)


@cli.command(
    help=helped(
        "Show what RECIPE asks and trains on, before a run: the exact prompts of sampling and evaluation, some "
        "training rows token by token (supervised and masked), and the rules in plain words. If the run has rows, "
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
def preview(recipe: str, rows: int, problem: str | None, with_model: bool, options: Options) -> None:
    """See the help."""
    with prepared(recipe, options) as loaded:
        from upft_mlx.inspection.preview import preview as preview_of

        folder = folder_of(recipe, loaded, options.run_dir)
        facts = preview_of(loaded, folder, rows=rows, problem=problem, model=with_model).dump()
        if options.as_json:
            click.echo(to_json(facts))
            return
        from upft_mlx.ui.preview import print_preview

        print_preview(facts, plain=options.plain)
