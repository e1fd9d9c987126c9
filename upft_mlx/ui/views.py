"""What people see: a live view on a terminal or plain lines, the summary at the end, and errors.

Text from models and data is never parsed as markup, and control characters are removed.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from upft_mlx import escape
from upft_mlx.events import Observer
from upft_mlx.machine.terminal import unechoed
from upft_mlx.results.facts import RunFacts, Seen
from upft_mlx.rows import write_atomically
from upft_mlx.ui.console import open_console, paged, say, worded
from upft_mlx.ui.live import LiveView
from upft_mlx.ui.plain import PlainView
from upft_mlx.ui.show import detail, listing, regrading
from upft_mlx.ui.summary import file_lines, summary
from upft_mlx.ui.text import glyphs_for

SVG_SIZE = (100, 50)
"""Columns, and lines that Rich wants to be told too; a longer page is not cut."""


@contextmanager
def open_view(
    *,
    plain: bool,
    stderr: bool = False,
    verbose: bool = False,
    console: Console | None = None,
    stages: Sequence[str] = (),
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Observer]:
    """Watch a run: a live view on a terminal, plain lines otherwise.

    Args:
        plain: lines even on a terminal.
        stderr: leave stdout to results.
        verbose: minor notes too.
        console: where to, instead of stdout or stderr.
        stages: the stages to come, shown as pending before they start.
        now: monotonic seconds.
    """
    # Rich takes FORCE_COLOR for a terminal: right for colours, wrong for a display that moves the cursor.
    alive = console.is_terminal if console else (sys.stderr if stderr else sys.stdout).isatty()
    console = console or open_console(stderr=stderr)
    if plain or not alive or console.is_dumb_terminal:
        lines = PlainView(console.file, stages, now, verbose=verbose)
        with lines.beating():
            yield lines
        return
    view = LiveView(console, stages, now, verbose=verbose)
    with unechoed(console.file), view.live() as display:
        try:
            yield view
            display.transient = True  # what is done has its lines; what was stopped stays on the screen
        except BaseException:
            display.transient = not view.stop()  # an error before the first stage needs no list of stages above it
            raise


def print_summary(report: RunFacts, *, verbose: bool = False, console: Console | None = None) -> None:
    """Print the end of a run to stdout; `verbose`: with each stage, and what training did to the model."""
    console = console or open_console()
    glyphs = glyphs_for(console.encoding)
    console.print()
    for part in summary(report, glyphs, console.width, verbose=verbose):
        say(console, part)
    for line in file_lines(report, glyphs, verbose=verbose):
        console.print(line, soft_wrap=True)  # a path that is broken cannot be copied


def print_next(run_dir: Path, *, flips: bool, demo: bool = False, console: Console | None = None) -> None:
    """Print what to look at after a run.

    Args:
        run_dir: the run.
        flips: whether base and tuned were measured.
        demo: whether it was the demo, after which come questions and a model of one's own.
        console: where to, instead of stdout.
    """
    run = shlex.quote(run_dir.name if run_dir.parent == Path("runs") else str(run_dir))
    lines = {f"upft show {run} --html": "every problem with both answers"} if flips else {}
    lines[f"upft ask {run}"] = "your questions to base and tuned"
    if demo:
        lines["upft new MODEL my-questions.csv"] = "a recipe for your model and data"
    print_commands(lines, console=console)


def print_commands(lines: dict[str, str], *, console: Console | None = None) -> None:
    """Print commands to type next, and what each gives; no line is wrapped, so that it can be copied."""
    console = console or open_console()
    commands = [Text(command) for command in lines]
    width = max(command.cell_len for command in commands)
    console.print()
    for head, command, what in zip(("next", *[""] * len(lines)), commands, lines.values(), strict=False):
        command.pad_right(width + 3 - command.cell_len)
        line = Text().append(f"{head:7}  ", "dim").append_text(command).append(what, "dim")
        line.rstrip()
        console.print(line, soft_wrap=True)


def print_seen(items: Sequence[Seen], *, only_flips: bool, whole: bool, console: Console | None = None) -> None:
    """Print problems with the answers of base and tuned, through a pager if they do not fit on the terminal.

    Args:
        items: the problems.
        only_flips: whether base and tuned disagree on all of them.
        whole: print the question and completions of each instead of one line.
        console: where to, instead of stdout.
    """
    console = console or open_console()
    glyphs = glyphs_for(console.encoding)
    parts = [part for item in items for part in detail(item, glyphs)] if whole else []
    parts = parts or list(listing(items, glyphs, console.width, only_flips=only_flips))
    with paged(console, parts):
        for part in parts:
            console.print(part)


def print_regraded(facts: dict[str, Any], console: Console | None = None) -> None:
    """Print what another grader changes (`browse.regraded`), through a pager if it is long."""
    console = console or open_console()
    parts = list(regrading(facts, glyphs_for(console.encoding)))
    with paged(console, parts):
        for part in parts:
            console.print(part)


def save_svg(report: RunFacts, path: Path) -> None:
    """Write the summary as a picture, in colour whatever the environment says about terminals."""
    width, height = SVG_SIZE
    console = Console(
        record=True,
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        force_jupyter=False,
        color_system="truecolor",
        legacy_windows=False,
    )
    glyphs = glyphs_for("utf-8")
    for part in (*summary(report, glyphs, width), *file_lines(report, glyphs)):
        console.print(part, overflow="fold")
    write_atomically(path, picture(console, "upft"))


def picture(console: Console, title: str) -> str:
    """What a console has recorded, as SVG. Rich's names fonts on a server; a picture of ours reaches for nothing.

    In texts spaces are `&#160;` there, so nothing but the style can be meant.
    """
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)


def print_text(text: str, *, console: Console | None = None) -> None:
    """Print a text to stdout; on a terminal its lines are broken between words."""
    alive = console.is_terminal if console else sys.stdout.isatty()
    console = console or open_console()
    console.print(worded(text, console, alive=alive), soft_wrap=True)


def print_error(message: str, *, console: Console | None = None) -> None:
    """Print an error to stderr as it is; on a terminal its lines are broken between words."""
    alive = console.is_terminal if console else sys.stderr.isatty()
    console = console or open_console(stderr=True)
    text = worded(f"Error: {escape.message(message)}", console, alive=alive)
    text.stylize("bold red", 0, len("Error: "))
    console.print(text, soft_wrap=True)
