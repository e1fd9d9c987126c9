"""`upft forecast`, `analyze` and `compare`: each prints its own table, not a run's report."""

from __future__ import annotations

import click

from upft_mlx.cli.edge import folder_of, prepared, writing_to
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import Options, common, helped, recipe_argument, verbose
from upft_mlx.escape import to_json


def _study_command(what: str, text: str, *examples: str) -> None:
    """Define `upft WHAT RECIPE`."""

    @cli.command(name=what, help=helped(text, *examples))
    @recipe_argument
    @common
    def command(recipe: str, options: Options) -> None:
        _study(recipe, what, options)


_study_command(
    "forecast",
    "Say before any training what each rule that picks prefixes would change, from RECIPE's problems that have answers "
    "(32 to 64 are enough): coverage, accuracy, a forecast with its interval, cost, and advice. Continues where it "
    "stopped.",
    "upft forecast quickstart",
    "upft forecast my-recipe.yaml --set forecast.problems=128 --set 'forecast.lengths=[8, 16, 32]'",
)


_study_command(
    "analyze",
    "Measure how long a prefix RECIPE's model and problems support: prefix self-consistency and prefix accuracy as "
    "tables, JSON and curves, and a recommended prefix.length. Continues where it stopped.",
    "upft analyze quickstart",
    "upft analyze my-recipe.yaml --set analyze.problems=50",
)


_study_command(
    "compare",
    "Run base and the methods in RECIPE's compare section over several seeds with the same evaluation. Shows accuracy "
    "with intervals, tokens, time and memory as a table, figures and JSON. Continues where it stopped.",
    "upft compare quickstart",
    "upft compare my-recipe.yaml --set compare.seeds=5 --set 'compare.methods=[upft, upft:majority_answer]'",
)


def _study(
    name: str,
    what: str,
    options: Options,
) -> None:
    """Run one, and print its table."""
    with prepared(name, options) as recipe:
        from upft_mlx.pipeline import run_forecast
        from upft_mlx.studies.analyze import run_analysis
        from upft_mlx.studies.compare import compare
        from upft_mlx.ui import views

        root = folder_of(name, recipe, options.run_dir)
        cells = ("generate", "build", "train", "evaluate")
        stages = {"analyze": ("analyze",), "compare": cells, "forecast": ("answers", "forecast")}[what]
        view = views.open_view(plain=options.plain, stderr=options.as_json, verbose=verbose(), stages=stages)
        if what == "forecast":
            with writing_to(root), view as notify:
                forecast = run_forecast(recipe, root, notify)
            if options.as_json:
                click.echo(to_json(forecast.dump()))
            else:
                views.print_forecast(forecast.dump(), root / "forecast")
            return
        work = {"analyze": run_analysis, "compare": compare}[what]
        with writing_to(root), view as notify:
            found = work(recipe, root, notify)
        if options.as_json:
            click.echo(to_json(found))
        elif what == "analyze":
            views.print_analysis(found, root / "analysis")
        else:
            views.print_comparison(found, root / "compare")
