"""Settings side by side: chosen on one part, reported on the other, and what runs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.facts import results
from helpers.ui import console, written

from upft_mlx.errors import RecipeError
from upft_mlx.models import load
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.studies.sweep import folder_name, parts, sweep
from upft_mlx.studies.sweep_table import Cell, Sweep, advice, best, figure, markdown, report, tried
from upft_mlx.ui import tables

MakeRecipe = Callable[..., Recipe]


def cell(name: str, base: str, tuned: str) -> Cell:
    """A setting's cell; `1` is a right answer."""
    before, after = ({str(place): float(mark) for place, mark in enumerate(marks)} for marks in (base, tuned))
    return Cell({"train.learning_rate": name}, f"runs/{name}", before, after, 10, 20, 1.5, 10**6)


CELLS = [
    cell("small", "0" * 20 + "1" * 20, "0" * 20 + "1" * 20),
    cell("good", "0" * 20 + "1" * 20, "1" * 10 + "0" * 10 + "1" * 20),
    cell("as good", "0" * 20 + "1" * 20, "0" * 10 + "1" * 30),
    cell("bad", "0" * 20 + "1" * 20, "0" * 40),
]


def of(cells: list[Cell], reported: int = 1, rounding: float | None = None) -> Sweep:
    chosen = best(cells)
    paired = {"delta": 0.05, "ci95": [-0.01, 0.11], "p_value": 0.2}
    variants = {variant: {"n": 60, "accuracy": 0.5, "truncated": 0.0} for variant in ("base", "tuned")}
    rest = results({"dev": {**variants, "paired": paired}})
    cells_tried = tried(cells, 1, rounding or 0.0)
    return Sweep("dev", 40, rounding, cells_tried, chosen.settings, chosen.run, rest, reported)


def test_the_best_is_chosen_the_first_of_several_and_the_others_are_paired_with_it() -> None:
    found = of(CELLS)
    assert found.chosen == {"train.learning_rate": "good"}
    assert [one.difference.delta for one in found.tried] == [0.0, 0.25, 0.25, -0.5]
    assert [one.to_chosen and one.to_chosen.delta for one in found.tried] == [-0.25, None, 0.0, -0.75]
    assert found.tried[1].ci95[0] < found.tried[1].accuracy == 0.75 < found.tried[1].ci95[1]


def test_a_choice_says_how_many_settings_are_measurably_worse() -> None:
    assert "2 of 3 others are measurably worse on the 40 development problems" in advice(of(CELLS))
    assert "no other setting is measurably worse" in advice(of(CELLS[1:3]))
    assert advice(of(CELLS[:1])) == "chosen: train.learning_rate=small"
    many = [cell(str(number), "0" * 20 + "1" * 20, "0" * 20 + "1" * 20) for number in range(26)]
    assert "1 of 29 others is" in advice(of([*CELLS, *many])), "ten of forty lost are a claim in three, not in 29"


def test_no_difference_within_what_rounding_changes_is_claimed() -> None:
    found = of(CELLS, rounding=0.3)
    assert "1 of 3 others is measurably worse on the 40 development problems" in advice(found), "75 points are, 25 not"
    low, high = found.tried[1].difference.ci95
    assert low <= 0.0 < found.tried[1].difference.delta == 0.25 < high
    told = "rounding alone changes 30.0 % of grades; no smaller difference is claimed"
    assert told in markdown(found)
    assert "rounding" not in markdown(of(CELLS)), "it was not measured"
    target = console(80, color_system=None)
    tables.print_sweep(found.dump(), [], Path("sweep"), console=target)
    assert told in written(target)


def test_the_rest_is_reported_with_the_doubts_of_a_run_s_report() -> None:
    """Each of its benchmarks is tested at 5 %, and the best accuracy may come from answers that are cut."""
    variants = {"base": {"n": 60, "truncated": 0.0}, "tuned": {"n": 60, "truncated": 0.2}}
    paired = {"delta": 0.1, "ci95": [0.01, 0.19], "p_value": 0.03}
    rest = results({"a": {**variants, "paired": paired}, "b": {**variants, "paired": paired}})
    told = report(replace(of(CELLS), rest=rest))
    assert told[0] == "a, 60 other problems: better, +10.0 points [+1.0, +19.0]"
    assert told[1].startswith("a: of 2 benchmarks, one may well differ by chance")
    assert "cut answers went from 0 % to 20 %" in told[2]


def test_using_the_rest_again_is_said() -> None:
    assert len(report(of(CELLS))) == 1
    assert "60 other problems" in report(of(CELLS))[0]
    assert "used for 3 chosen settings" in report(of(CELLS, reported=3))[-1]


def test_the_page_the_figure_and_the_screen_have_a_line_per_setting() -> None:
    hostile = cell("a|b <i>", "0" * 40, "0" * 40)
    lines = [line for line in markdown(of([*CELLS, hostile])).splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(CELLS) + 1
    assert r"a\|b \<i\>" in lines[-1]
    names = [text.text for text in ElementTree.fromstring(figure(of([*CELLS, hostile]))).iter() if text.text]
    assert "learning_rate=a|b <i>" in names
    target = console(80, color_system=None)
    tables.print_sweep(of(CELLS).dump(), ["first", "second"], Path("sweep"), console=target)
    screen = written(target).splitlines()
    assert screen[1:3] == ["first", "second"]
    assert [line.split()[0] for line in screen if "[" in line] == ["small", "good", "as", "bad"]
    assert all(len(line) <= 80 for line in screen)


def entries(recipe: Recipe) -> list[tuple[str, str | None]]:
    return [(entry.label or entry.name, entry.part) for entry in recipe.evaluate.benchmarks]


@pytest.mark.parametrize(
    ("benchmarks", "on", "development", "rest"),
    [
        (["arithmetic"], "arithmetic", [("arithmetic", "development")], [("arithmetic", "rest")]),
        (
            ["arithmetic", {"name": "arithmetic", "label": "again"}, {"name": "own", "path": "/x.jsonl"}],
            "again",
            [("again", "development")],
            [("arithmetic", "rest"), ("again", "rest"), ("own", None)],
        ),
        (
            ["gpqa", "gpqa-freeform", {"name": "own", "dataset": "openai/gsm8k", "config": "main"}],
            "gpqa",
            [("gpqa", "development")],
            [("gpqa", "rest"), ("gpqa-freeform", "rest"), ("own", None)],
        ),
        (
            ["gsm8k", {"name": "own", "dataset": "openai/gsm8k", "config": "main"}],
            "gsm8k",
            [("gsm8k", "development")],
            [("gsm8k", "rest"), ("own", "rest")],
        ),
        (
            [{"name": "dev", "path": "/d.jsonl", "part": "development"}, {"name": "test", "path": "/t.jsonl"}],
            "dev",
            [("dev", "development")],
            [("test", None)],
        ),
        (
            [
                {"name": "dev", "path": "/d.jsonl", "part": "development"},
                {"name": "whole", "path": "/d.jsonl"},
                {"name": "same", "path": "/d.jsonl", "part": "development"},
                {"name": "other", "path": "/d.jsonl", "part": "rest"},
                {"name": "test", "path": "/t.jsonl", "part": "development"},
            ],
            "dev",
            [("dev", "development")],
            [("whole", "rest"), ("same", "rest"), ("other", "rest"), ("test", "development")],
        ),
        ([{"name": "dev", "path": "/d", "part": "rest"}], "dev", [("dev", "rest")], [("dev", "development")]),
    ],
)
def test_what_was_chosen_on_is_not_reported_on(
    make_recipe: MakeRecipe,
    benchmarks: list[Any],
    on: str,
    development: list[tuple[str, str | None]],
    rest: list[tuple[str, str | None]],
) -> None:
    found = parts(make_recipe(evaluate={"benchmarks": benchmarks}), on)
    assert [entries(recipe) for recipe in found] == [development, rest]


def test_other_settings_have_another_folder() -> None:
    long = {"prefix.template": "x" * 300}
    names = [folder_name(one) for one in ({"a": "b c"}, {"a": "b/c"}, {"a": 1, "b": 2}, long)]
    assert len(set(names)) == 4
    assert all(len(name) < 80 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("benchmarks", "on", "message"),
    [([], None, "evaluate.benchmarks: empty"), (["arithmetic"], "dev", "--on: no benchmark 'dev'")],
)
def test_a_sweep_without_anything_to_choose_on_is_refused(
    make_recipe: MakeRecipe, tmp_path: Path, benchmarks: list[str], on: str | None, message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        sweep(make_recipe(evaluate={"benchmarks": benchmarks}), {"seed": [1]}, tmp_path, on=on)
    assert message in str(error.value)


GRID: dict[str, list[Any]] = {"prefix.length": [4], "train.learning_rate": [1e-4, 3e-2]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Sweep]:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "model": "builtin:arithmetic",
            "problems": {"builtin": "arithmetic", "limit": 6},
            "generate": {"max_tokens": 40, "batch_size": 16},
            "prefix": {"structure_ratio": 0.0},
            "train": {"batch_size": 4, "steps": 2},
            "evaluate": {"max_tokens": 30, "benchmarks": [{"name": "arithmetic", "limit": 4}]},
        }
    )
    root = tmp_path_factory.mktemp("sweep")
    return recipe, root, sweep(recipe, GRID, root)


def problems_of(run: RunDir, variant: str) -> set[str]:
    return {row.problem_id for row in read_rows(run.rows_of("arithmetic", variant), EvaluationRow)}


def test_the_chosen_one_alone_is_measured_on_the_rest(swept: tuple[Recipe, Path, Sweep]) -> None:
    _, root, found = swept
    runs = [RunDir(one.run) for one in found.tried]
    development = problems_of(runs[0], "tuned")
    assert development == problems_of(runs[1], "tuned")
    assert len(development) == found.problems == 4
    looks = sorted((root / "sweep").glob("*/looks/rest"))
    assert [look.parent.parent for look in looks] == [Path(found.run)]
    rest = problems_of(RunDir(looks[0]), "tuned")
    assert len(rest) == 4
    assert not rest & development
    tuned = found.rest["arithmetic"].tuned
    assert tuned
    assert tuned.n == 4
    assert found.reported == 1


def test_what_runs_need_alike_is_made_once(swept: tuple[Recipe, Path, Sweep]) -> None:
    first, second = (RunDir(one.run) for one in swept[2].tried)
    made, copied = (dict(vars(run.entry("generate"))) for run in (first, second))
    assert made.pop("recipe")["train"] != copied.pop("recipe")["train"], "each run's own"
    assert made == copied, "seconds included: it was copied"
    assert first.rows_of("arithmetic", "base").read_bytes() == second.rows_of("arithmetic", "base").read_bytes()
    assert first.entry("train") != second.entry("train")
    assert swept[2].rounding == 0.0, "base was asked again, and in float32 nothing changes"


def test_a_second_call_runs_nothing_again_and_a_larger_grid_only_what_is_new(
    swept: tuple[Recipe, Path, Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, root, found = swept
    loads: list[Any] = []

    def count(*arguments: Any, **options: Any) -> Any:
        loads.append(arguments)
        return load.load_for(*arguments, **options)

    monkeypatch.setattr("upft_mlx.job.load_for", count)
    assert sweep(recipe, GRID, root) == found
    assert loads == []
    stored = json.loads((root / "sweep" / "sweep.json").read_text())
    assert stored["tried"] == json.loads(json.dumps(found.dump()))["tried"]
    larger = sweep(recipe, {**GRID, "train.learning_rate": [1e-4, 3e-2, 1e-3]}, root)
    assert 2 <= len(loads) <= 3, "training and evaluating the new one, and perhaps the rest"
    before, after = found.tried[0].difference, larger.tried[0].difference
    assert after.delta == before.delta
    assert after.ci95[1] > before.ci95[1], "one of three comparisons instead of two"
    (kept,) = (root / "sweep" / ".kept").glob("*/sweep.json")
    assert json.loads(kept.read_text()) == stored
