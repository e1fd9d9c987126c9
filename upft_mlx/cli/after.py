"""`upft export`, `push`, `show`: what is done with a finished run."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.complete import complete_runs
from upft_mlx.cli.edge import edge, memory_limit, quiet_libraries, run_other
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import Options, PathOption, common, helped, recipe_argument, verbose, verbose_option
from upft_mlx.escape import to_json
from upft_mlx.quantities import disk, many

if TYPE_CHECKING:
    from upft_mlx.events import Observer
    from upft_mlx.recipe.schema import Recipe
    from upft_mlx.rundir import RunDir


@cli.command(
    help=helped(
        "Write the result for other tools: the adapter for PEFT or, as GGUF, for llama.cpp and Ollama; the fused model "
        "as GGUF for LM Studio, llama.cpp and Ollama; or without quantization for transformers.",
        "upft export quickstart --format peft",
        "upft export quickstart --format gguf",
        "upft export quickstart --format gguf-model",
        "upft export quickstart --format dequantized --to my-model",
    )
)
@recipe_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["peft", "gguf", "gguf-model", "dequantized"]),
    required=True,
    help="Format to write.",
)
@click.option("--to", type=PathOption(), help="Output folder.  [default: RUN/export/FORMAT]")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16"]),
    help="Type of a dequantized model.  [default: bf16]",
)
@common
def export(recipe: str, form: str, to: Path | None, dtype: str | None, options: Options) -> None:
    """See the help."""
    if dtype is not None and form != "dequantized":
        raise click.UsageError(f"--dtype is for --format dequantized; --format {form} has types of its own")

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx import api

        return api.export(loaded, run_dir, form, to, dtype or "bf16", notify)

    run_other(recipe, work, lambda facts: f"{facts['folder']}: {facts['detail']}", options)


@cli.command(
    help=helped(
        "Upload the result with its model card to publish.repo on the Hugging Face Hub, private unless the recipe says "
        "otherwise. Continues an interrupted upload.",
        "upft push my-recipe.yaml --dry-run",
        "upft push my-recipe.yaml --set publish.repo=user/name",
    )
)
@recipe_argument
@click.option("--dry-run", is_flag=True, help="Show exactly what would be uploaded; upload nothing.")
@common
def push(recipe: str, dry_run: bool, options: Options) -> None:
    """See the help."""

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx import api

        return api.push(loaded, run_dir, notify, dry_run=dry_run)

    run_other(recipe, work, _pushed, options)


def _pushed(facts: dict[str, Any]) -> str:
    """What was uploaded, or would be."""
    kind = "private" if facts["private"] else "public"
    where = facts["repo"] or "a repository without a name yet (--set publish.repo=user/name)"
    head = f"{facts['url']}: uploaded" if "url" in facts else f"would upload to {where}"
    lines = [f"{head} ({kind}), {many(len(facts['files']), 'file')}, {disk(facts['bytes'])}:"]
    lines += [f"  {file['bytes']:>15,}  {file['path']}" for file in facts["files"]]
    if facts["left_out"]:
        lines.append(f"not uploaded: {', '.join(facts['left_out'])}")
    return "\n".join(lines)


@cli.command(
    help=helped(
        "Show the report of a run, or the answers of base and tuned problem by problem. RUN is a folder, a name in "
        "runs/, or the recipe's file. Several runs are shown in one table: each model's accuracy, and the difference "
        "of every pair.",
        "upft show quickstart",
        "upft show runs/my-first runs/my-second",
        "upft show quickstart --html",
        "upft show quickstart --flips",
        "upft show quickstart --grade",
        "upft show my-recipe.yaml --problem evaluation-0007",
    )
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_runs)
@click.option("--html", is_flag=True, help="Write report.html, one offline file, and open it in the browser.")
@click.option("--flips", is_flag=True, help="Problems where base and tuned disagree.")
@click.option("--rows", is_flag=True, help="All problems and samples.")
@click.option("--problem", metavar="ID", help="One problem: question, gold answer and the completions.")
@click.option(
    "--grade", is_flag=True, help="Grade the rows again and show what this version's grader changes. Writes nothing."
)
@click.option("--benchmark", "benchmarks", multiple=True, metavar="NAME", help="Only this benchmark; may be repeated.")
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def show(
    runs: Sequence[str],
    html: bool,
    flips: bool,
    rows: bool,
    problem: str | None,
    grade: bool,
    benchmarks: Sequence[str],
    as_json: bool,
    debug: bool,
) -> None:
    """See the help."""
    if len(runs) > 1 and (html or flips or rows or problem or grade):
        raise click.UsageError("--html, --flips, --rows, --problem and --grade take one RUN")
    if html + grade + bool(flips or rows or problem) > 1:
        raise click.UsageError("give --html, --grade, or which problems (--flips, --rows, --problem), not several")
    if benchmarks and len(runs) == 1 and not (flips or rows or problem or grade):
        raise click.UsageError("--benchmark needs --flips, --rows, --problem, --grade or several RUNs")
    quiet_libraries()
    with edge(debug=debug):
        from upft_mlx.inspection import browse
        from upft_mlx.ui import tables, views

        if len(runs) > 1:
            from upft_mlx.inspection.side_by_side import side_by_side

            compared = browse.find_runs(runs)
            together = side_by_side(compared, benchmarks).dump()
            _say_earlier(compared)
            click.echo(to_json(together)) if as_json else tables.print_side_by_side(together)
            return
        found = browse.find_run(runs[0])
        if html:
            _show_page(found, as_json=as_json)
            return
        if grade:
            graded = browse.regraded(found, benchmarks)
            _say_earlier([found])
            click.echo(to_json(graded)) if as_json else views.print_regraded(graded)
            return
        if not (flips or rows or problem):
            facts = browse.facts_of(found)
            if as_json:
                click.echo(to_json(facts.dump()))
                return
            views.print_summary(facts, verbose=verbose())
            if stale := browse.earlier_stages(found):
                views.print_text(f"not shown, made with an earlier version of the stages above: {', '.join(stale)}")
            elif not facts.stages:
                views.print_text(f"no stage is finished; `{found.command('run')}` begins or continues")
            return
        items = browse.seen(found, benchmarks, only_flips=flips)
        if problem is not None:
            items = browse.of_problem(items, problem)
        _say_earlier([found])
        if as_json:
            click.echo(to_json([item.dump() for item in items]))
        else:
            views.print_seen(items, only_flips=flips, whole=problem is not None)


@cli.command(
    help=helped(
        "List the runs in a folder, newest first: the verdict of each with its differences, and the recipe fields in "
        "which it differs from most of the others.",
        "upft runs",
        "upft runs my-experiments --json",
    )
)
@click.argument("folder", type=PathOption(), default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def runs(folder: Path, as_json: bool, debug: bool) -> None:
    """See the help."""
    quiet_libraries()
    with edge(debug=debug):
        from upft_mlx.inspection.runs import list_runs
        from upft_mlx.ui.tables import print_runs

        found = list_runs(folder)
        click.echo(to_json(found)) if as_json else print_runs(found)


def _say_earlier(runs: Sequence[RunDir]) -> None:
    """Warn on stderr about each run whose answers were measured before an earlier stage ran again."""
    from upft_mlx.inspection.browse import earlier_stages, run_of
    from upft_mlx.ui import views
    from upft_mlx.ui.console import open_console

    for run in runs:
        if "evaluate" in earlier_stages(run):
            whole = run_of(run)  # the folder of a look is no run to evaluate
            options = " with the same options as then" if whole else ""
            again = f"`{(whole or run).command('evaluate')}`{options} measures them again"
            text = f"{run.root}: these answers are out of date, because an earlier stage has run again since; {again}"
            views.print_text(text, console=open_console(stderr=True))


def _show_page(run: RunDir, *, as_json: bool) -> None:
    """Write report.html from what is on this machine, and open it where there is a browser to open it in."""
    from upft_mlx.inspection.page import write_page
    from upft_mlx.models.hub import go_offline
    from upft_mlx.ui import views

    go_offline()  # looking at a run downloads nothing
    path = write_page(run, memory_limit())
    if as_json:
        click.echo(to_json({"page": str(path)}))
        return
    # In a browser of this desktop: not over SSH, and not in a text browser in this terminal.
    remote = any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY"))
    desktop = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    here = not remote and sys.stdout.isatty() and (desktop or bool(os.environ.get("BROWSER")))
    opened = here and webbrowser.open(path.resolve().as_uri())
    views.print_text(f"{path}: opened in the browser" if opened else f"{path}: open it in a browser")
