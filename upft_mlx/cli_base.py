"""What all commands share: the group, the common options, and the edge that turns errors into messages and statuses.

Slow modules (pydantic, Rich, MLX) are imported inside the functions, so that `upft --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from upft_mlx.cli_complete import complete_fields, complete_targets
from upft_mlx.cli_group import Sections
from upft_mlx.errors import UpftError
from upft_mlx.escape import one_line, to_json
from upft_mlx.hub_attempts import tell_attempts_once

if TYPE_CHECKING:
    from upft_mlx.events import Observer
    from upft_mlx.recipe import Recipe


Command = TypeVar("Command", bound=Callable[..., Any])


_COMMON = (
    click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/NAME]"),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.FIELD=VALUE",
        shell_complete=complete_fields,
        help="Change a field of the recipe; may be repeated.",
    ),
    click.option("--offline", is_flag=True, help="Use no network; missing files are an error."),
    click.option("--plain", is_flag=True, help="Print lines instead of a live view."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


recipe_argument = click.argument("recipe", shell_complete=complete_targets)
"""RECIPE of a command: a file, a shipped name, or a run; the shell completes all three."""


def common(command: Command) -> Command:
    """Give a command the options that all commands on a recipe have."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def helped(text: str, *examples: str) -> str:
    r"""A command's help: what it does, then examples that click must not rewrap (`\b`)."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"{text}\n\n\b\nExample{'s' if len(examples) > 1 else ''}:\n{lines}"


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=helped(
        "Unsupervised Prefix Fine-Tuning on a Mac: sample the first tokens of one solution per problem, "
        "fine-tune on them alone, measure base against tuned, and fuse. RECIPE is a YAML file, the name of a shipped "
        "recipe, or a run directory with its own settings. `upft COMMAND --help` shows the options of a command.",
        "upft demo",
        "upft run my-recipe.yaml --set prefix.length=8",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, parameter, value: _print_versions(context) if value else None,
    help="Show the versions of upft, mlx, mlx-lm and Python and exit.",
)
def cli() -> None:
    """The group; its help is above."""


def _print_versions(context: click.Context) -> None:
    from upft_mlx.machine import versions_line

    click.echo(versions_line())
    context.exit()


def run_other(
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
    """Run a command that is not a stage: prints lines, and on a terminal the Hub client's own progress bars."""
    with prepared(name, overrides, offline=offline, debug=debug) as recipe:
        from upft_mlx import ui

        if plain or not sys.stderr.isatty():
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        folder = folder_of(name, recipe, run_dir)
        with ui.open_view(plain=True, stderr=True) as notify:
            facts = work(recipe, folder, notify)
        if as_json:
            click.echo(to_json(facts))
        else:
            ui.print_text(text(facts))


@contextmanager
def prepared(
    name: str | None,
    overrides: Sequence[str],
    *,
    offline: bool,
    debug: bool,
    model: str | None = None,
    narrow: dict[str, Any] | None = None,
) -> Iterator[Recipe]:
    """The recipe, with the ranks joined, the network off if asked, and errors turned into messages."""
    quiet_libraries()
    sets = [f"--set {text}" for text in overrides]
    fetch = " ".join(["upft fetch", name, *sets]) if name else f"hf download {model}"
    with edge(debug=debug, fetch=fetch):
        from upft_mlx import machine
        from upft_mlx.models import go_offline, is_offline

        machine.check()
        if offline or is_offline():  # each library has its own switch
            go_offline()
        from upft_mlx.narrow import narrowed, recipe_for_model
        from upft_mlx.parallel import ranks
        from upft_mlx.targets import recipe_for

        ranks()  # first, so that all ranks hear of an error on one
        recipe = recipe_for_model(str(model), overrides) if name is None else recipe_for(name, overrides)
        yield narrowed(recipe, **narrow) if narrow is not None and any(narrow.values()) else recipe


def folder_of(name: str | None, recipe: Recipe, run_dir: Path | None) -> Path:
    """The run's folder: `--run-dir`, the run that was named, or runs/NAME of the recipe."""
    from upft_mlx.targets import run_for

    return run_dir or run_for(name, recipe).root


def quiet_libraries() -> None:
    """Keep other libraries' banners off the screen and their telemetry off the network."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    tell_attempts_once()


@contextmanager
def writing_to(run_dir: Path) -> Iterator[None]:
    """Name the run directory in errors that name no file, such as a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(run_dir)
        raise


@contextmanager
def edge(*, debug: bool, fetch: str = "upft fetch") -> Iterator[None]:
    """Turn errors into one message and an exit status: 1 failed, 2 recipe or usage, 130 interrupted.

    `fetch` is the command that downloads the recipe's model and data.
    """
    try:
        yield
    except KeyboardInterrupt:
        _fail(130, "interrupted; progress saved; run the same command to continue")
    except UpftError as error:
        if debug:
            raise
        _fail(error.exit_status, str(error).replace("`upft fetch`", f"`{fetch}`"))
    except OSError as error:
        if debug:
            raise
        _fail(1, _refused(error))
    except ImportError as error:
        if debug or (error.name or "").startswith("upft_mlx"):
            raise
        from upft_mlx.machine import import_refusal

        _fail(1, import_refusal(error))
    except Exception as error:
        if debug:
            raise
        from upft_mlx.machine import kernel_refusal

        if found := _IN_RUST.search(str(error)):  # tokenizers and safetensors raise an Exception of no kind
            _fail(1, _refused(OSError(int(found[1]), os.strerror(int(found[1])))))
        if trouble := kernel_refusal(error):
            _fail(1, trouble)
        what = f"unexpected {type(error).__name__}: {one_line(str(error), 1000)}"
        _fail(1, f"{what}; run again with --debug and report the output")


_IN_RUST = re.compile(r"\(os error (\d+)\)")


def _refused(error: OSError) -> str:
    """What the system refuses, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    room = "make room, then " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return f"{where}{error.strerror or error}; progress saved: {room}run the same command again"


def _fail(status: int, message: str) -> None:
    from upft_mlx import ui
    from upft_mlx.parallel import joined

    if team := joined():
        message = f"rank {team.rank}: {message}"
        team.leave(message)
    ui.print_error(message)
    sys.exit(status)
