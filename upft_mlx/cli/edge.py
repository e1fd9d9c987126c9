"""Where errors become messages and exit statuses, and what all commands do first.

Whatever is slow to import (pydantic, Rich, MLX) is imported inside the functions, so `upft --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.options import Options, verbose
from upft_mlx.errors import NO_ROOM, OfflineError, UpftError
from upft_mlx.escape import one_line, to_json
from upft_mlx.models.hub import tell_attempts_once
from upft_mlx.quantities import disk

if TYPE_CHECKING:
    from upft_mlx.events import Observer
    from upft_mlx.recipe.schema import Recipe


def run_other(
    name: str,
    work: Callable[[Recipe, Path, Observer], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
    options: Options,
) -> None:
    """Run a command that is not a stage: prints lines, and on a terminal the Hub client's own progress bars."""
    with prepared(name, options) as recipe:
        from upft_mlx.ui import views

        if options.plain or not sys.stderr.isatty():
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        folder = folder_of(name, recipe, options.run_dir)
        with views.open_view(plain=True, stderr=True, verbose=verbose()) as notify:
            facts = work(recipe, folder, notify)
        if options.as_json:
            click.echo(to_json(facts))
        else:
            views.print_text(text(facts))


@contextmanager
def prepared(
    name: str | None,
    options: Options,
    *,
    model: str | None = None,
    benchmark_options: dict[str, Any] | None = None,
) -> Iterator[Recipe]:
    """The recipe, with the ranks joined, the network off if asked, and errors turned into messages."""
    quiet_libraries()
    sets = [word for text in options.overrides for word in ("--set", text)]
    fetch = shlex.join(["upft", "fetch", name, *sets] if name else ["hf", "download", str(model)])
    with edge(debug=options.debug, fetch=fetch, saves=True):
        from upft_mlx.machine import requirements
        from upft_mlx.models.hub import go_offline, is_offline

        requirements.check()
        if options.offline or is_offline():  # each library has its own switch
            go_offline()
        from upft_mlx.cli.targets import recipe_for
        from upft_mlx.distributed.ranks import ranks
        from upft_mlx.recipe.override import recipe_for_model, with_benchmarks

        ranks()  # first, so that all ranks hear of an error on one
        overrides = options.overrides
        recipe = recipe_for_model(str(model), overrides) if name is None else recipe_for(name, overrides)
        if benchmark_options is not None and any(benchmark_options.values()):
            recipe = with_benchmarks(recipe, **benchmark_options)
        yield recipe


def folder_of(name: str | None, recipe: Recipe, run_dir: Path | None) -> Path:
    """The run's folder: `--run-dir`, the run that was named, or runs/NAME of the recipe."""
    from upft_mlx.cli.targets import run_for

    return run_dir or run_for(name, recipe).root


def memory_limit() -> tuple[int, str]:
    """The bytes that a stage may take on this machine, and what they are."""
    from upft_mlx.planning.budget import this_machine

    budget = this_machine()
    return budget.bytes, budget.what


def quiet_libraries() -> None:
    """Keep other libraries' banners off the screen and their telemetry off the network."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    tell_attempts_once()


@contextmanager
def watching(run_dir: Path, options: Options, stages: Sequence[str]) -> Iterator[Observer]:
    """A view of the work in a run directory; errors that name no file, such as a full disk, get its name."""
    from upft_mlx.distributed.ranks import ranks
    from upft_mlx.events import ignore
    from upft_mlx.ui import views

    view = views.open_view(plain=options.plain, stderr=options.as_json, verbose=verbose(), stages=stages)
    try:
        with view if ranks().leads else nullcontext(ignore) as notify:  # rank 0 has the screen
            yield notify
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(run_dir)
        raise


@contextmanager
def edge(*, debug: bool, fetch: str = "upft fetch", saves: bool = False) -> Iterator[None]:
    """Turn errors into one message and an exit status: 1 failed, 2 recipe or usage, 130 interrupted.

    Args:
        debug: show tracebacks.
        fetch: the command that downloads the recipe's model and data.
        saves: whether running the command again continues from what was saved, if anything was.
    """
    again = f"run the same command {'to continue' if saves else 'again'}"
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C while Python shuts down: no traceback
        if sys.stderr.isatty():
            sys.stderr.write("\r")  # overwrite the ^C that a terminal echoes while no view is open
        _fail(130, f"interrupted; {again}" if saves else "interrupted")
    except UpftError as error:
        if debug:
            raise
        if isinstance(error, OfflineError):
            error.fetch_with(fetch)
        _fail(error.exit_status, str(error))
    except OSError as error:
        if debug:
            raise
        _fail(1, _refused(error, again))
    except ImportError as error:
        if debug or (error.name or "").startswith("upft_mlx"):
            raise
        from upft_mlx.machine.requirements import import_refusal

        _fail(1, import_refusal(error))
    except Exception as error:  # a fault of ours: shown as one, with how to report it, instead of a traceback
        if debug:
            raise
        from upft_mlx.machine.requirements import kernel_refusal

        if found := _IN_RUST.search(str(error)):  # tokenizers and safetensors raise an Exception of no kind
            _fail(1, _refused(OSError(int(found[1]), os.strerror(int(found[1]))), again))
        if trouble := kernel_refusal(error):
            _fail(1, trouble)
        what = f"unexpected {type(error).__name__}: {one_line(str(error), 1000)}"
        _fail(1, f"{what}; run again with --debug and report the output")


_IN_RUST = re.compile(r"\(os error (\d+)\)")


def _refused(error: OSError, again: str) -> str:
    """What the system refuses, and what to do."""
    file = str(error.filename2 or error.filename or "")  # of two the one that was to be replaced
    where = f"{file}: " if file else ""
    room = "make room, then " if error.errno in NO_ROOM else ""
    what = str(error.strerror or error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        room = "get access to it, then "
    if error.errno == errno.EISDIR:
        what, room = "there is a folder where this file should go", "move it away, then "
    if error.errno == errno.ENOSPC:
        place = next(p for p in (Path(file or "."), *Path(file or ".").parents) if p.exists())
        what = f"the disk is full, {disk(shutil.disk_usage(place).free)} free"
    return f"{where}{what}; {room}{again}"


def _fail(status: int, message: str) -> None:
    from upft_mlx.distributed.ranks import joined
    from upft_mlx.ui import views

    if team := joined():
        message = f"rank {team.rank}: {message}"
        team.leave(message)
    views.print_error(message)
    sys.exit(status)
