"""What `compare` and `analyze` print: the answer first, then each difference around zero."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.input import upft
from helpers.ui import console, written

from upft_mlx.forecasting.estimate import Forecast, points
from upft_mlx.recipe.load import load_recipe
from upft_mlx.results.facts import Seen
from upft_mlx.rows import EvaluationRow
from upft_mlx.studies.demo import CAVEAT
from upft_mlx.ui import tables, views
from upft_mlx.ui.console import UNBROKEN, open_console
from upft_mlx.ui.show import detail
from upft_mlx.ui.text import glyphs_for

MEASURED = Path(__file__).parents[2] / "docs" / "assets" / "compare-quickstart.json"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return dict(json.loads(MEASURED.read_text()))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_comparison_leads_with_what_is_better(measured: dict[str, Any], width: int) -> None:
    target = console(width, color_system=None)
    tables.print_comparison(measured, Path("runs/q/compare"), console=target)
    lines = written(target).splitlines()
    assert lines[1].startswith("rft is better than base on arithmetic-sampled;")
    rows = [line for line in lines if line.startswith("rft ") and "[" in line]
    assert [line.split()[1:] for line in rows][1][-2:] == ["[+2.2,", "+4.5]"]
    assert all(len(line) <= width for line in lines if "/" not in line)
    assert any("├" in line for line in lines) == (width >= 80)
    if width >= 80:
        zero = next(line for line in lines if line.startswith("upft ") and "┼" in line).index("┼")
        assert {line[zero] for line in rows} == {"┼", "│"}
        assert rows[1].index("├") > zero


def test_a_comparison_without_a_difference_says_so(measured: dict[str, Any]) -> None:
    target = console(80, color_system=None)
    few = {name: measured["methods"][name] for name in ("base", "sft", "upft")}
    tables.print_comparison({**measured, "methods": few}, Path("compare"), console=target)
    assert written(target).splitlines()[1] == "no method differs measurably from base"


def test_where_nobody_is_right_nothing_is_compared(measured: dict[str, Any]) -> None:
    """`show` calls such an evaluation void; the comparison said that no method differs measurably."""
    zero = {"accuracy": 0.0, "ci95": [0.0, 0.01], "difference": {"delta": 0.0, "ci95": [-0.01, 0.01]}}
    told = {}
    for void in (["arithmetic-sampled"], ["arithmetic", "arithmetic-sampled"]):
        methods = {
            name: row | {"benchmarks": row["benchmarks"] | dict.fromkeys(void, zero)}
            for name, row in measured["methods"].items()
        }
        target = console(120, color_system=None)
        tables.print_comparison({**measured, "methods": methods}, Path("compare"), console=target)
        told[len(void)] = written(target).splitlines()[1]
    assert told == {
        1: "no method differs measurably from base; no method has a right answer on arithmetic-sampled",
        2: "no method has a right answer on arithmetic and arithmetic-sampled",
    }


def test_a_method_that_samples_nothing_is_among_the_costs(measured: dict[str, Any]) -> None:
    """`annotated` trains on the dataset's own solutions; compare.md had its costs, the screen had not."""
    methods = {"base": measured["methods"]["base"], "annotated": measured["methods"]["sft"] | {"tokens_sampled": 0}}
    target = console(80, color_system=None)
    rounding = {"arithmetic": 0.015, "arithmetic-sampled": None}
    tables.print_comparison({**measured, "methods": methods, "rounding": rounding}, Path("compare"), console=target)
    lines = written(target).splitlines()
    told = "rounding alone changes 1.5 % of grades; no smaller difference is claimed"
    assert [line for line in lines if "rounding" in line] == [told]
    costs = [line.split() for line in lines[next(n for n, line in enumerate(lines) if "tokens trained" in line) :]]
    assert costs[2:4] == [["annotated", "0", "7.5", "k", "6.9", "s", "40", "MB"], []]


def test_methods_that_train_nothing_leave_no_empty_table_of_costs(measured: dict[str, Any]) -> None:
    nothing = {"tokens_sampled": 0, "tokens_trained": 0}
    methods = {"base": measured["methods"]["base"], "best_of_prefix": measured["methods"]["sft"] | nothing}
    target = console(80, color_system=None)
    tables.print_comparison({**measured, "methods": methods}, Path("compare"), console=target)
    assert "tokens sampled" not in written(target)


@pytest.mark.parametrize("width", [80, 120])
def test_an_analysis_leads_with_the_recommendation(width: int) -> None:
    share = {"mean": 0.5, "ci95": [0.4, 0.6]}
    difference = {"delta": 0.02, "ci95": [-0.05, 0.09]}
    found = {
        "self_consistency": [{"length": 4, "mean": 3.5, "ci95": [3.0, 4.0]}],
        "accuracy": [{"length": 4, "correct": share, "incorrect": share, "difference": difference}],
        "recommended": {"length": 4, "reason": "both arms are alike up to here"},
    }
    target = console(width, color_system=None)
    tables.print_analysis(found, Path("analysis"), console=target)
    lines = written(target).splitlines()
    assert lines[1:3] == ["recommended prefix.length: 4", "both arms are alike up to here"]
    assert "50 % [40, 60]" in lines[6]
    assert not any("advice" in line for line in lines)
    worth = {"mean": 0.125, "ci95": [0.02, 0.23]}
    rules = [
        {"selection": name, "length": length, "forecast": None if name == "first" else worth}
        for length in (4, 8)
        for name in ("first", "consensus", "prefix_confidence", "probe")
    ]
    forecast = {"problems": 64, "rules": rules, "advice": {"text": "train with consensus"}}
    tables.print_analysis({**found, "forecast": forecast}, Path("analysis"), console=target)
    lines = written(target).splitlines()
    assert "advice: train with consensus" in lines
    assert [line.split()[0] for line in lines if line.count("+12.5 [+2.0, +23.0]") == 3] == ["4", "8"]
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("width", [80, 120, None])
def test_a_forecast_loses_no_digit_on_a_terminal_or_in_a_pipe(
    width: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Forecast.load(json.loads((MEASURED.parent / "forecast.json").read_text())["smollm2/forecast"])
    found = replace(found, advice=replace(found.advice, remark="without training, ..."))
    monkeypatch.setenv("COLUMNS", "80")  # as what runs the tests may have set
    target = console(width, color_system=None) if width else None
    tables.print_forecast(found.dump(), Path("forecast"), console=target)
    text = written(target) if target else capsys.readouterr().out
    assert text.splitlines()[1].startswith(f"advice: {found.advice.text}"[:70])
    assert "\nand without training, ...\n" in text
    told = next(line for line in text.splitlines() if line.startswith("share: of the samples"))
    assert (width is None) == told.endswith("sampled per problem to train so."), "in a pipe each text is one line"
    assert "\u2026" not in text
    for table in text.split(" vs greedy  tokens\n")[1:]:
        line, *rules = table.partition("\n\n")[0].splitlines()
        assert {len(rule.rstrip()) for rule in rules if "[" in rule} == {len(line.rstrip())}, (
            "numbers end in one column"
        )
    for rule in found.rules:
        if rule.forecast is not None:
            assert points(rule.forecast) in text
    assert width is None or max(map(len, text.splitlines())) <= width


def test_what_a_forecast_advises_is_a_command_that_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice named a rule and a length; with these alone `upft run` refused, as one sample leaves no choice."""
    found = Forecast.load(json.loads((MEASURED.parent / "forecast.json").read_text())["smollm2/forecast"])
    monkeypatch.setattr("upft_mlx.pipeline.run_forecast", lambda *_: found)
    sets = ["--set", "forecast.problems=9", "--set", "problems.limit=32", "--run-dir", str(tmp_path)]
    shown = upft("forecast", "quickstart", *sets)
    assert shown.exit_code == 0, shown.output
    words = shlex.split(shown.stdout.splitlines()[-1].partition("next")[2])
    assert words[:5] == ["upft", "run", "quickstart", "--run-dir", str(tmp_path)]
    recipe = load_recipe("quickstart", words[6::2])
    assert (recipe.prefix.selection, recipe.prefix.length) == (found.advice.selection, found.advice.length)
    assert (recipe.generate.samples, recipe.problems.limit) == (found.samples, 32)
    assert "next" not in upft("forecast", "quickstart", *sets, "--json").stdout
    nothing = replace(found, advice=replace(found.advice, selection=None, length=None))
    monkeypatch.setattr("upft_mlx.pipeline.run_forecast", lambda *_: nothing)
    assert "next" not in upft("forecast", "quickstart", *sets).stdout


def test_an_id_and_a_swept_value_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """An id with a bracket ended `upft show --problem` in an error, or lost the bracket's text."""
    row, zero = EvaluationRow("alg[/x]", 0, "7", "7", "7", True, 1, "stop"), {"delta": 0.0, "ci95": [-0.1, 0.1]}
    item = Seen("mine", "alg[/x]:smile:", 0, "[b]q[/x]", None, None, "7", row, row)
    target = console(80, color_system=None)
    target.print(*detail(item, glyphs_for("utf-8")))
    assert "alg[/x]:smile:" in written(target)
    tried = {"settings": {"prefix.template": "[/INST]"}, "accuracy": 0.5, "ci95": [0.4, 0.6], "difference": zero}
    found = {"benchmark": "m", "problems": 9, "chosen": {"prefix.template": ""}, "tried": [tried | {"to_chosen": None}]}
    tables.print_sweep({**found, "rounding": None}, [], Path("sweep"), console=target)
    assert "[/INST]" in written(target)
    open_console().print("[b]:smile:[/x]")
    assert capsys.readouterr().out == "[b]:smile:[/x]\n"


def test_a_pipe_has_a_width_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert open_console().width == UNBROKEN
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes it for a terminal then
    assert open_console().width == 60


DEMO = {
    "chosen": "consensus",
    "forecast": "consensus: +20.3 [+16.2, +24.4] points at t = 8, from 64 problems with answers",
    "measured": {
        "arithmetic": {"temperature": 0.0, "delta": 0.0, "ci95": [-0.035, 0.035]},
        "sampled": {"temperature": 0.7, "delta": 0.145, "ci95": [0.108, 0.181]},
    },
    "paper": {},
    "caveat": CAVEAT,
}


@pytest.mark.parametrize("width", [80, 120])
def test_the_demo_ends_with_words_that_need_no_clone(width: int) -> None:
    target = console(width, color_system=None)
    tables.print_demo(DEMO, console=target)
    views.print_next(Path("runs/demo"), flips=True, demo=True, console=target)
    text = written(target)
    assert all(len(line) <= width for line in text.splitlines())
    assert "+14.5 [+10.8, +18.1]  +0.0 [-3.5, +3.5]" in text
    assert "before you train: upft forecast RECIPE" in " ".join(text.split())
    assert "docs/" not in text, "an installed tool has no such pages"
    assert text.splitlines()[-1].strip() == "upft new MODEL my-questions.csv   a recipe for your model and data"


def test_the_demo_s_caveat_states_what_was_measured() -> None:
    page = (Path(__file__).parents[2] / "docs/measured/forecast.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith("| careless | consensus |")]
    forecast, measured = (float(cell.split()[0]) for cell in row.split("|")[3:5])
    assert f"lost {-measured:.1f} points" in CAVEAT
    assert f"({forecast:+.1f})" in CAVEAT
