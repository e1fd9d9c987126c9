"""The `upft` command. The only module that knows click; errors become messages and exit statuses here.

Whatever is slow to import (pydantic, Rich, MLX) is imported inside the functions: `upft --help` answers
at once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from upft_mlx import __version__
from upft_mlx.errors import UpftError

if TYPE_CHECKING:
    from upft_mlx.events import Observer
    from upft_mlx.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

_COMMON = (
    click.option("--run-dir", type=click.Path(path_type=Path), help="Where the run is kept.  [default: runs/NAME]"),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.FIELD=VALUE",
        help="Change a field of the recipe; may be repeated.",
    ),
    click.option("--offline", is_flag=True, help="Use no network; what is missing is an error."),
    click.option("--plain", is_flag=True, help="Print lines instead of a live view."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


def _common(command: Command) -> Command:
    for option in reversed(_COMMON):
        command = option(command)
    return command


def _help(text: str, *examples: str) -> str:
    r"""A command's help: what it does, then examples that click must not rewrap (`\b`)."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"{text}\n\n\b\nExample{'s' if len(examples) > 1 else ''}:\n{lines}"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=_help(
        "Unsupervised Prefix Fine-Tuning on a Mac: sample the first tokens of one solution per problem, "
        "fine-tune on those alone, measure base against tuned, fuse. RECIPE is a YAML file or the name of a "
        "shipped recipe.",
        "upft demo",
        "upft run my-recipe.yaml --set prefix.length=8",
    ),
)
@click.version_option(__version__, prog_name="upft")
def cli() -> None:
    """The group; its help is above."""


@cli.command(help=_help("Run the quickstart recipe: embedded model and problems, offline, in minutes.", "upft demo"))
@_common
def demo(**options: Any) -> None:
    """See the help."""
    _run("quickstart", None, **options)


@cli.command(
    name="run",
    help=_help(
        "Run all stages of RECIPE. What is done and current is skipped; what was interrupted is continued.",
        "upft run quickstart",
        "upft run my-recipe.yaml --run-dir runs/try-2 --set train.learning_rate=5e-5",
    ),
)
@click.argument("recipe")
@_common
def run_command(recipe: str, **options: Any) -> None:
    """See the help."""
    _run(recipe, None, **options)


def _stage_command(stage: str, text: str) -> None:
    """Define `upft STAGE RECIPE`."""

    @cli.command(name=stage, help=_help(text, f"upft {stage} quickstart"))
    @click.argument("recipe")
    @_common
    def command(recipe: str, **options: Any) -> None:
        _run(recipe, stage, **options)


_stage_command("generate", "Sample the solutions that RECIPE needs into solutions.jsonl; continues where it stopped.")
_stage_command("build", "Turn solutions.jsonl into the training and validation rows in dataset/.")
_stage_command("train", "Train the LoRA adapter on dataset/; continues from the last checkpoint.")


@cli.command(
    help=_help(
        "Write the adapter into the weights: fused/, a folder that mlx-lm loads. Refuses what would lose the training, "
        "and says what keeps it.",
        "upft fuse quickstart",
        "upft fuse quickstart --set publish.fuse=mixed",
    )
)
@click.argument("recipe")
@click.option("--force", is_flag=True, help="Fuse even if less than publish.min_retained is kept.")
@_common
def fuse(recipe: str, force: bool, **options: Any) -> None:
    """See the help."""
    if force:
        options["force"] = True
    _run(recipe, "fuse", **options)


@cli.command(
    help=_help(
        "Write the result for other tools: the adapter for PEFT, or the fused model without quantization for "
        "transformers.",
        "upft export quickstart --format peft",
        "upft export quickstart --format dequantized --to my-model",
    )
)
@click.argument("recipe")
@click.option("--format", "form", type=click.Choice(["peft", "dequantized"]), required=True, help="What to write.")
@click.option("--to", type=click.Path(path_type=Path), help="The folder.  [default: RUN/export/FORMAT]")
@click.option(
    "--dtype", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True, help="Of a dequantized model."
)
@_common
def export(recipe: str, form: str, to: Path | None, dtype: str, **options: Any) -> None:
    """See the help."""

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx import delivery

        return delivery.export(loaded, run_dir, form, to, dtype, notify)

    _run_other(recipe, work, lambda facts: f"{facts['folder']}: {facts['detail']}", **options)


@cli.command(
    help=_help(
        "Upload the result with its model card to publish.repo on the Hugging Face Hub, private unless the recipe says "
        "otherwise. Continues where it was cut.",
        "upft push my-recipe.yaml --dry-run",
        "upft push my-recipe.yaml --set publish.repo=user/name",
    )
)
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Show exactly what would go up; upload nothing.")
@_common
def push(recipe: str, dry_run: bool, **options: Any) -> None:
    """See the help."""

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx import delivery

        return delivery.push(loaded, run_dir, notify, dry_run=dry_run)

    _run_other(recipe, work, _pushed, **options)


def _pushed(facts: dict[str, Any]) -> str:
    """What went up, or would."""
    kind = "private" if facts["private"] else "public"
    head = (
        f"{facts['url']}: uploaded" if "url" in facts else f"would upload to {facts['repo'] or '(publish.repo unset)'}"
    )
    lines = [f"{head} ({kind}), {len(facts['files'])} files, {facts['bytes'] / 1e6:.1f} MB:"]
    lines += [f"  {file['bytes']:>15,}  {file['path']}" for file in facts["files"]]
    if facts["left_out"]:
        lines.append(f"not uploaded: {', '.join(facts['left_out'])}")
    return "\n".join(lines)


@cli.command(
    help=_help(
        "Download what RECIPE needs from the Hugging Face Hub; says first how much room it takes. Afterwards every "
        "command runs with --offline.",
        "upft fetch my-recipe.yaml",
    )
)
@click.argument("recipe")
@_common
def fetch(recipe: str, **options: Any) -> None:
    """See the help."""

    def work(loaded: Recipe, run_dir: Path, notify: Observer) -> dict[str, Any]:
        from upft_mlx.fetch import fetch

        return fetch(loaded, notify)

    _run_other(recipe, work, lambda facts: "complete; --offline now runs every command of this recipe", **options)


def _study_command(what: str, text: str, *examples: str) -> None:
    """Define `upft analyze RECIPE` and `upft compare RECIPE`."""

    @cli.command(name=what, help=_help(text, *examples))
    @click.argument("recipe")
    @_common
    def command(recipe: str, **options: Any) -> None:
        _study(recipe, what, **options)


_study_command(
    "analyze",
    "Measure how long a prefix may be on RECIPE's model and problems: prefix self-consistency and prefix accuracy, "
    "as tables, JSON and curves, and a recommended prefix.length. Continues where it stopped.",
    "upft analyze quickstart",
    "upft analyze my-recipe.yaml --set analyze.problems=50",
)
_study_command(
    "compare",
    "Run base and the methods of RECIPE's compare section over several seeds with the same evaluation: accuracy "
    "with intervals, tokens, time and memory as a table, figures and JSON. Continues where it stopped.",
    "upft compare quickstart",
    "upft compare my-recipe.yaml --set compare.seeds=5 --set 'compare.methods=[upft, upft:majority_answer]'",
)


@cli.command(
    help=_help(
        "Measure base and, once there is an adapter, tuned on the benchmarks of RECIPE; or, without a recipe, any "
        "model that mlx-lm loads. BENCHMARK is a known one (arithmetic, gsm8k, math500, aime2024, aime2025, gpqa, "
        "gpqa-freeform) or a local file with questions and answers.",
        "upft evaluate quickstart",
        "upft evaluate my-recipe.yaml --limit 50 --subset level=5",
        "upft evaluate --model my-model --adapter my-adapter --benchmark gsm8k --benchmark my-test.jsonl",
    )
)
@click.argument("recipe", required=False)
@click.option("--model", metavar="PATH_OR_ID", help="Evaluate this model instead of a recipe's.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Compare the model with this adapter on it.")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    help="Which to measure; may be repeated.  [default: RECIPE's, else arithmetic]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N problems of each benchmark.")
@click.option("--subset", multiple=True, metavar="FIELD=VALUE", help="Only this level or subject; may be repeated.")
@_common
def evaluate(
    recipe: str | None,
    model: str | None,
    adapter: Path | None,
    benchmarks: Sequence[str],
    limit: int | None,
    subset: Sequence[str],
    **options: Any,
) -> None:
    """See the help."""
    if (recipe is None) == (model is None):
        raise click.UsageError("give a RECIPE, or a model with --model" + (", not both" if recipe else ""))
    narrow = {"benchmarks": benchmarks, "limit": limit, "subset": subset}
    if recipe is None and not benchmarks:
        narrow["benchmarks"] = ("arithmetic",)
    if adapter is not None:
        options["adapter"] = adapter
    _run(recipe, "evaluate", model=model, narrow=narrow, **options)


@cli.command(
    help=_help(
        "Show what is in a run directory: its report, or problem by problem what base and tuned answered. RUN is a "
        "folder, or a name in runs/.",
        "upft show quickstart",
        "upft show quickstart --flips",
        "upft show quickstart --problem evaluation-0007",
    )
)
@click.argument("run")
@click.option("--flips", is_flag=True, help="What is right on one side and wrong on the other.")
@click.option("--rows", is_flag=True, help="Every problem and sample.")
@click.option("--problem", metavar="ID", help="One problem: question, gold answer and the completions.")
@click.option("--benchmark", "benchmarks", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def show(
    run: str, flips: bool, rows: bool, problem: str | None, benchmarks: Sequence[str], as_json: bool, debug: bool
) -> None:
    """See the help."""
    _quiet_libraries()
    with _edge(debug=debug):
        from upft_mlx import browse, ui

        found = browse.find_run(run)
        if not (flips or rows or problem):
            facts = browse.facts_of(found)
            click.echo(json.dumps(facts, indent=2)) if as_json else ui.print_summary(facts)
            return
        items = browse.seen(found, benchmarks, only_flips=flips)
        if problem is not None:
            items = browse.of_problem(items, problem)
        if as_json:
            click.echo(json.dumps([item.dump() for item in items], indent=2, ensure_ascii=False))
        else:
            ui.print_seen(items, only_flips=flips, whole=problem is not None)


@cli.command(help=_help("List the shipped recipes.", "upft recipes"))
def recipes() -> None:
    """See the help."""
    from upft_mlx.load import load_recipe, shipped_recipes

    with _edge(debug=False):
        for name, path in shipped_recipes().items():
            recipe = load_recipe(path)
            click.echo(f"{name:20} {recipe.model}, {recipe.method}; {path}")


def _run(
    name: str | None,
    stage: str | None,
    run_dir: Path | None,
    overrides: Sequence[str],
    offline: bool,
    plain: bool,
    as_json: bool,
    debug: bool,
    model: str | None = None,
    narrow: dict[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Run a stage, or all, in a live view; `extra` are options of the stage's own."""
    with _prepared(name, overrides, offline=offline, debug=debug, model=model, narrow=narrow) as recipe:
        _execute(recipe, run_dir or Path("runs") / recipe.name, stage, plain=plain, as_json=as_json, **extra)


def _run_other(
    name: str,
    work: Callable[[Recipe, Path, Observer], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
    run_dir: Path | None,
    overrides: Sequence[str],
    offline: bool,
    plain: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Run what is no stage: lines, and the Hub client's own bars where there is a terminal."""
    with _prepared(name, overrides, offline=offline, debug=debug) as recipe:
        from upft_mlx import ui

        if plain or not sys.stderr.isatty():
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        folder = run_dir or Path("runs") / recipe.name
        with ui.open_view(plain=True, stderr=True) as notify:
            facts = work(recipe, folder, notify)
        click.echo(json.dumps(facts, indent=2) if as_json else text(facts))


@contextmanager
def _prepared(
    name: str | None,
    overrides: Sequence[str],
    *,
    offline: bool,
    debug: bool,
    model: str | None = None,
    narrow: dict[str, Any] | None = None,
) -> Iterator[Recipe]:
    """The recipe, with the ranks joined, the network off where it is to be, and errors turned into messages."""
    _quiet_libraries()
    sets = [f"--set {text}" for text in overrides]
    fetch = " ".join(["upft fetch", name, *sets]) if name else f"hf download {model}"
    with _edge(debug=debug, fetch=fetch):
        from upft_mlx.models import go_offline, is_offline

        if offline or is_offline():  # each library has a switch of its own
            go_offline()
        from upft_mlx.load import load_recipe
        from upft_mlx.narrow import narrowed, recipe_for_model
        from upft_mlx.parallel import ranks

        ranks()  # first, so that what goes wrong on one rank is heard by all
        recipe = recipe_for_model(str(model), overrides) if name is None else load_recipe(name, overrides)
        yield narrowed(recipe, **narrow) if narrow is not None and any(narrow.values()) else recipe


def _study(
    name: str,
    what: str,
    run_dir: Path | None,
    overrides: Sequence[str],
    offline: bool,
    plain: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """`upft analyze` and `upft compare`: what they find is a table of its own, not a run's report."""
    with _prepared(name, overrides, offline=offline, debug=debug) as recipe:
        from upft_mlx import ui
        from upft_mlx.compare import compare
        from upft_mlx.pipeline import run_analysis

        root = run_dir or Path("runs") / recipe.name
        work = {"analyze": run_analysis, "compare": compare}[what]
        with _writing_to(root), ui.open_view(plain=plain, stderr=as_json) as notify:
            found = work(recipe, root, notify)
        if as_json:
            click.echo(json.dumps(found, indent=2))
        elif what == "analyze":
            ui.print_analysis(found, root / "analysis")
        else:
            ui.print_comparison(found, root / "compare")


def _execute(recipe: Recipe, run_dir: Path, stage: str | None, *, plain: bool, as_json: bool, **extra: Any) -> None:
    from upft_mlx import pipeline, ui
    from upft_mlx.events import ignore
    from upft_mlx.parallel import ranks

    stages = pipeline.STAGES if stage is None else (stage,)
    if not ranks().leads:  # rank 0 has the screen and the run directory
        _work(recipe, run_dir, stage, ignore, **extra)
        return
    with _writing_to(run_dir), ui.open_view(plain=plain, stderr=as_json, stages=stages) as notify:
        facts = _work(recipe, run_dir, stage, notify, **extra)
    ui.save_svg(facts, run_dir / "report.svg")
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif stage in (None, "evaluate"):
        ui.print_summary(facts)


def _work(recipe: Recipe, run_dir: Path, stage: str | None, notify: Observer, **extra: Any) -> dict[str, Any]:
    from upft_mlx import pipeline

    if stage is None:
        return pipeline.run(recipe, run_dir, notify)
    return pipeline.run_stage(recipe, run_dir, stage, notify, **extra)


def _quiet_libraries() -> None:
    """Keep other libraries' banners off the screen and their telemetry off the network."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@contextmanager
def _writing_to(run_dir: Path) -> Iterator[None]:
    """Name the run directory in errors that name no file, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(run_dir)
        raise


@contextmanager
def _edge(*, debug: bool, fetch: str = "upft fetch") -> Iterator[None]:
    """Turn errors into one message and an exit status: 1 failed, 2 recipe or usage, 130 interrupted.

    `fetch` is the command that downloads what the recipe needs.
    """
    try:
        yield
    except KeyboardInterrupt:
        _fail(130, "interrupted; what is done is kept, the same command continues")
    except UpftError as error:
        if debug:
            raise
        _fail(error.exit_status, str(error).replace("`upft fetch`", f"`{fetch}`"))
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        room = "make room, then " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        _fail(1, f"{where}{error.strerror or error}; what is done is kept: {room}run the same command again")
    except Exception as error:
        if debug:
            raise
        _fail(1, f"unexpected {type(error).__name__}: {error}; run again with --debug and report what it shows")


def _fail(status: int, message: str) -> None:
    from upft_mlx import ui
    from upft_mlx.parallel import joined

    if team := joined():
        message = f"rank {team.rank}: {message}"
        team.leave(message)
    ui.print_error(message)
    sys.exit(status)


def main() -> None:
    """The entry point of the `upft` script."""
    cli()
