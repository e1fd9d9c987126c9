"""`upft forecast`, `analyze`, `compare` and `sweep`: each prints its own table, not a run's report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.complete import complete_fields
from upft_mlx.cli.edge import folder_of, prepared, watching
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import Options, common, helped, recipe_argument
from upft_mlx.escape import to_json

if TYPE_CHECKING:
    from upft_mlx.forecasting.estimate import Forecast
    from upft_mlx.studies.method_table import Comparison
    from upft_mlx.studies.prefix_statistics import Analysis


def _study_command(what: str, text: str, *examples: str) -> None:
    """Define `upft WHAT RECIPE`."""

    @cli.command(name=what, help=helped(text, *examples))
    @recipe_argument
    @common
    def command(recipe: str, options: Options) -> None:
        _study(recipe, what, options)


_study_command(
    "forecast",
    "Before training, estimate what each rule that picks prefixes would change, from RECIPE's problems with answers "
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


@cli.command(
    help=helped(
        "Try every combination of settings on RECIPE and choose one. Each is trained as its own run and measured on "
        "the development part (evaluate.development) of a benchmark; the best one is then measured once on the rest. "
        "Continues where it stopped.",
        "upft sweep quickstart prefix.length=4,8,16 train.learning_rate=1e-4,3e-4",
        "upft sweep my-recipe.yaml lora.rank=8,32 --on gsm8k",
    )
)
@recipe_argument
@click.argument("grid", nargs=-1, required=True, metavar="SECTION.FIELD=VALUE,VALUE...", shell_complete=complete_fields)
@click.option("--on", metavar="BENCHMARK", help="The benchmark to choose on.  [default: RECIPE's first]")
@common
def sweep(recipe: str, grid: Sequence[str], on: str | None, options: Options) -> None:
    """See the help."""
    with prepared(recipe, options) as loaded:
        from upft_mlx.distributed.ranks import ranks
        from upft_mlx.recipe.grid import parse_grid
        from upft_mlx.studies.compare import STAGES
        from upft_mlx.studies.sweep import sweep
        from upft_mlx.studies.sweep_table import advice, report
        from upft_mlx.ui import tables

        root = folder_of(recipe, loaded, options.run_dir)
        with watching(root, options, STAGES) as notify:
            found = sweep(loaded, parse_grid(grid), root, notify, on=on)
        if not ranks().leads:  # rank 0 has the screen
            return
        if options.as_json:
            click.echo(to_json(found.dump()))
        else:
            tables.print_sweep(found.dump(), [advice(found), *report(found)], root / "sweep")


def _study(name: str, what: str, options: Options) -> None:
    """Run one, and print its table."""
    with prepared(name, options) as recipe:
        from upft_mlx.distributed.ranks import ranks
        from upft_mlx.pipeline import run_forecast
        from upft_mlx.studies.analyze import run_analysis
        from upft_mlx.studies.compare import STAGES, compare
        from upft_mlx.ui import tables, views

        root = folder_of(name, recipe, options.run_dir)
        stages = {"analyze": ("analyze",), "compare": STAGES, "forecast": ("answers", "forecast")}[what]
        work: dict[str, Callable[..., Forecast | Analysis | Comparison]]
        work = {"analyze": run_analysis, "compare": compare, "forecast": run_forecast}
        with watching(root, options, stages) as notify:
            found = work[what](recipe, root, notify).dump()
        if not ranks().leads:  # rank 0 has the screen
            return
        if options.as_json:
            click.echo(to_json(found))
        elif what == "analyze":
            tables.print_analysis(found, root / "analysis")
        elif what == "compare":
            tables.print_comparison(found, root / "compare")
        else:
            tables.print_forecast(found, root / "forecast")
        if settings := [] if options.as_json or recipe.method != "upft" else _advised(what, found):
            where = ["--run-dir", str(options.run_dir)] if options.run_dir else []
            kept = [text for text in options.overrides if text.partition(".")[0] not in ("forecast", "analyze")]
            sets = [word for text in (*kept, *settings) for word in ("--set", text)]
            views.print_commands({shlex.join(["upft", "run", name, *where, *sets]): ""})


def _advised(what: str, found: dict[str, Any]) -> list[str]:
    """The settings that a forecast or an analysis advises, for `--set`; none if it advises none.

    A rule picks among as many samples as its forecast did.
    """
    if forecast := found if what == "forecast" else found.get("forecast"):
        rule, length = forecast["advice"]["selection"], forecast["advice"]["length"]
        settings = [f"prefix.selection={rule}", f"prefix.length={length}", f"generate.samples={forecast['samples']}"]
        return [] if rule is None else settings
    length = found["recommended"]["length"] if what == "analyze" else None
    return [] if length is None else [f"prefix.length={length}"]
