"""`upft demo`, `run`, and a command for each stage of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.complete import complete_targets
from upft_mlx.cli.edge import folder_of, memory_limit, prepared, run_other, watching
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import Options, PathOption, common, helped, recipe_argument, verbose
from upft_mlx.escape import quoted, to_json
from upft_mlx.stages import STAGES, Stage, in_run

if TYPE_CHECKING:
    from upft_mlx.events import Observer
    from upft_mlx.recipe.schema import Recipe


@cli.command(
    help=helped(
        "Show the whole method on an embedded model, offline, in minutes: make a forecast from 64 answers, train with "
        "the rule that it picks and measure the result, then do the same with the paper's own rule.",
        "upft demo",
    )
)
@common
def demo(options: Options) -> None:
    """See the help."""
    from upft_mlx.recipe.find import shipped_recipes

    _run(str(shipped_recipes()["demo"]), None, options, demo=True)  # whatever lies about under that name


@cli.command(
    name="run",
    help=helped(
        "Run all stages of RECIPE. Current stages are skipped; interrupted stages continue.",
        "upft run quickstart",
        "upft run my-recipe.yaml --run-dir runs/try-2 --set train.learning_rate=5e-5",
    ),
)
@recipe_argument
@common
def run_command(recipe: str, options: Options) -> None:
    """See the help."""
    _run(recipe, None, options)


def stage_command(stage: Stage) -> None:
    """Define `upft STAGE RECIPE` for a stage without options of its own."""

    @cli.command(name=stage.name, help=helped(stage.help, f"upft {stage.name} quickstart"))
    @recipe_argument
    @common
    def command(recipe: str, options: Options) -> None:
        _run(recipe, stage.name, options)


for _stage in STAGES.values():
    if _stage.help:
        stage_command(_stage)


@cli.command(
    help=helped(
        "Write the adapter into the weights: fused/, a folder that mlx-lm loads. Refuses formats that would lose the "
        "training, and says which keep it. With --adapter, other adapters of the same model are added up with their "
        "weights and fused into RUN/merged; the run's own files do not change.",
        "upft fuse quickstart",
        "upft fuse quickstart --set publish.fuse=mixed",
        "upft fuse my-recipe.yaml --adapter runs/a/adapter=0.5 --adapter runs/b/adapter=0.5",
    )
)
@recipe_argument
@click.option("--force", is_flag=True, help="Fuse even if less than publish.min_retained is kept.")
@click.option(
    "--adapter",
    "adapters",
    type=PathOption(),
    multiple=True,
    metavar="FOLDER[=WEIGHT]",
    help="Fuse this adapter instead of the run's own; several are added up.  [default weight: 1]",
)
@common
def fuse(recipe: str, force: bool, adapters: Sequence[Path], options: Options) -> None:
    """See the help."""
    if adapters:
        weights = [_weighted(str(path)) for path in adapters]
        if len(dict(weights)) < len(weights):
            raise click.UsageError("an --adapter is given twice; add up its weights")

        def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
            from upft_mlx import api

            return api.fuse(loaded, run_dir, notify, force=force, adapters=dict(weights))

        run_other(recipe, work, lambda facts: f"{facts['folder']}: {facts['detail']}", options)
        return
    extra: dict[str, Any] = {"force": True} if force else {}
    _run(recipe, "fuse", options, **extra)


def _weighted(text: str) -> tuple[Path, float]:
    """`FOLDER=WEIGHT`; a folder's name may hold `=` itself."""
    folder, _, weight = text.rpartition("=")
    try:
        return (Path(folder), float(weight)) if folder else (Path(text), 1.0)
    except ValueError:
        if Path(folder).is_dir() and not Path(text).exists():
            wrong = f"--adapter {quoted(text)}: expected a number as weight, found {quoted(weight)}"
            raise click.UsageError(wrong) from None
        return Path(text), 1.0


@cli.command(
    help=helped(
        "Measure base and, once there is an adapter, tuned on the benchmarks of RECIPE; or, without a recipe, any "
        "model that mlx-lm loads. BENCHMARK is a built-in one (arithmetic, gsm8k, math500, aime2024, aime2025, gpqa, "
        "gpqa-freeform) or a local file with questions and answers. With --benchmark, --limit, --subset or --adapter, "
        "the result is shown and saved separately in RUN/looks; the run's own evaluation does not change.",
        "upft evaluate quickstart",
        "upft evaluate my-recipe.yaml --limit 50 --subset level=5",
        "upft evaluate --model my-model --adapter my-adapter --benchmark gsm8k --benchmark my-test.jsonl",
        "upft evaluate --model my-model --adapter runs/a/adapter --adapter runs/b/adapter --benchmark gsm8k",
    )
)
@click.argument("recipe", required=False, shell_complete=complete_targets)
@click.option("--model", metavar="PATH_OR_ID", help="Evaluate this model instead of a recipe's.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=PathOption(),
    help="Adapter to compare with the base model; give several to compare them with each other as well.",
)
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    metavar="BENCHMARK",
    help="Benchmark to measure; may be repeated.  [default: RECIPE's, or arithmetic]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N problems of each benchmark.")
@click.option("--subset", multiple=True, metavar="FIELD=VALUE", help="Only this level or subject; may be repeated.")
@common
def evaluate(
    recipe: str | None,
    model: str | None,
    adapters: Sequence[Path],
    benchmarks: Sequence[str],
    limit: int | None,
    subset: Sequence[str],
    options: Options,
) -> None:
    """See the help."""
    if (recipe is None) == (model is None):
        raise click.UsageError("give a RECIPE, or a model with --model" + (", not both" if recipe else ""))
    set_too = re.compile(r"\s*evaluate(\.benchmarks\s*=|\s*=.*\bbenchmarks\b)", re.DOTALL)
    if benchmarks and any(set_too.match(text) for text in options.overrides):
        raise click.UsageError("give --benchmark or --set evaluate.benchmarks, not both")
    from upft_mlx.rundir import look_name

    benchmark_options = {"benchmarks": benchmarks, "limit": limit, "subset": subset}
    if len(adapters) > 1:
        if len({adapter.resolve() for adapter in adapters}) < len(adapters):
            raise click.UsageError("an --adapter is given twice; give each once")
        looks = {adapter: look_name(adapter, benchmarks, limit, subset) for adapter in adapters}
        _side_by_side(recipe, looks, options, model, benchmark_options)
        return
    adapter = adapters[0] if adapters else None
    extra: dict[str, Any] = {} if adapter is None else {"adapter": adapter}
    if recipe is not None and (adapter is not None or any(benchmark_options.values())):
        extra["look"] = look_name(adapter, benchmarks, limit, subset)
    _run(recipe, "evaluate", options, model=model, benchmark_options=benchmark_options, **extra)


def _side_by_side(
    name: str | None,
    looks: Mapping[Path, str],
    options: Options,
    model: str | None,
    benchmark_options: dict[str, Any],
) -> None:
    """Evaluate each adapter in a look of its own, base once for all, and print one table."""
    with prepared(name, options, model=model, benchmark_options=benchmark_options) as recipe:
        from upft_mlx import pipeline
        from upft_mlx.distributed.ranks import ranks
        from upft_mlx.inspection.side_by_side import side_by_side
        from upft_mlx.rundir import RunDir
        from upft_mlx.ui import tables

        folder = folder_of(name, recipe, options.run_dir)
        with watching(folder, options, ("evaluate",)) as notify:
            for adapter, look in looks.items():
                pipeline.run_stage(recipe, folder, "evaluate", notify, adapter=adapter, look=look)
        if ranks().leads:
            measured = [RunDir(folder / "looks" / look) for look in looks.values()]
            found = side_by_side(measured, names=[str(adapter) for adapter in looks]).dump()
            click.echo(to_json(found)) if options.as_json else tables.print_side_by_side(found)


def _run(
    name: str | None,
    stage: str | None,
    options: Options,
    model: str | None = None,
    benchmark_options: dict[str, Any] | None = None,
    demo: bool = False,
    **extra: Any,
) -> None:
    """Run a stage, or all, in a live view; `extra` holds the stage's own options."""
    with prepared(name, options, model=model, benchmark_options=benchmark_options) as recipe:
        from upft_mlx import pipeline
        from upft_mlx.distributed.ranks import ranks
        from upft_mlx.errors import RunDirError
        from upft_mlx.inspection.page import write_page
        from upft_mlx.rundir import RunDir
        from upft_mlx.studies.demo import run_demo
        from upft_mlx.ui import tables, views

        folder = folder_of(name, recipe, options.run_dir)
        with watching(folder, options, in_run() if stage is None else (stage,)) as notify:
            shown = None
            if demo:
                facts, shown = run_demo(recipe, folder, notify)
            elif stage is None:
                facts = pipeline.run(recipe, folder, notify)
            else:
                facts = pipeline.run_stage(recipe, folder, stage, notify, **extra)
        if not ranks().leads:  # rank 0 has the run directory
            return
        run, measures = RunDir(folder), stage is None or STAGES[stage].measures
        if facts.benchmarks and measures and not extra.get("look"):
            facts.files["page"] = str(write_page(run, memory_limit()))
        elif run.page.exists() and not extra.get("look"):  # it may show a result that is now out of date
            with suppress(RunDirError):  # a file that was changed by hand
                write_page(run, memory_limit())
        views.save_svg(facts, (folder / "looks" / extra["look"] if extra.get("look") else folder) / "report.svg")
        if options.as_json:
            click.echo(to_json({**facts.dump(), **({"demo": asdict(shown)} if shown else {})}))
        elif stage is None or STAGES[stage].measures:
            views.print_summary(facts, verbose=verbose())
            if shown:
                tables.print_demo(asdict(shown))
        if stage is None and not options.as_json:
            views.print_next(folder, flips=bool(facts.benchmarks), demo=demo)
