"""Each Chinese, Japanese or Korean character takes two columns; what follows such a name must stay aligned."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers.ui import ANSI, Clock, a_report, console, graded, written
from rich.cells import cell_len

from upft_mlx.events import EvaluationStarted, StageStarted
from upft_mlx.ui import tables, views
from upft_mlx.ui.live import LiveView

WIDE = "数学基准测试题集"


def columns(lines: list[str], sign: str) -> set[int]:
    """The columns at which a text begins on the screen, in the lines that have it."""
    return {cell_len(line[: line.index(sign)]) for line in lines if sign in line}


@pytest.mark.parametrize("name", [WIDE, WIDE * 3])
@pytest.mark.parametrize("width", [80, 120])
def test_a_summary(name: str, width: int) -> None:
    report, target = a_report(), console(width, color_system=None)
    report.benchmarks[name] = report.benchmarks["gsm8k"]
    views.print_summary(report, console=target)
    lines = written(target).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert len(columns([line for line in lines if "├" in line], " [")) == 1, "the differences"
    assert len(columns([line for line in lines if " %" in line and "├" not in line], " % [")) == 1, "the accuracies"
    assert ("…" in "".join(lines)) == (name != WIDE), "28 columns are kept of a name"


def test_several_runs_side_by_side() -> None:
    models = [{"name": name, "accuracy": 0.5, "ci95": [0.4, 0.6]} for name in ("base", WIDE)]
    target = console(80, color_system=None)
    pair = {"first": "base", "second": WIDE, "delta": 0.0, "ci95": [-0.1, 0.1], "p_value": 1.0}
    benchmark = {"problems": 9, "models": models, "pairs": [pair], "rounding": None}
    tables.print_side_by_side({"benchmarks": {"m": benchmark}, "comparisons": 1}, console=target)
    assert len(columns(written(target).splitlines(), "50.0 %")) == 1


def test_what_to_look_at_next() -> None:
    file = io.StringIO()
    views.print_next(Path(f"runs/{WIDE}"), flips=True, demo=True, console=console(file=file, force_terminal=False))
    first, second, third = file.getvalue().splitlines()[1:]
    places = columns([first], "every problem") | columns([second], "your questions to") | columns([third], "a recipe")
    assert len(places) == 1


@pytest.mark.parametrize("width", range(70, 130, 4))
def test_an_evaluation_keeps_as_much_of_a_name_as_fits(width: int) -> None:
    """Counted in signs, the name seemed to fit beside more detail, and was cut instead."""
    view = LiveView(console(), ("evaluate",), Clock())
    for event in (StageStarted("evaluate"), EvaluationStarted(((WIDE, 4),))):
        view(event)
    for problem in range(4):
        view(graded("base", problem, True, benchmark=WIDE))
        view(graded("tuned", problem, True, benchmark=WIDE))
    target = console(width, 24)
    target.print(view)
    lines = ANSI.sub("", written(target)).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert any(line.startswith(f"{WIDE}  ") for line in lines)
