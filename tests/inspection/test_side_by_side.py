"""Runs in one table: which models are the same, which problems count, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.ui import console, written

from upft_mlx.cli.main import cli
from upft_mlx.errors import RunDirError
from upft_mlx.evaluation.summary import AGAIN
from upft_mlx.inspection.browse import find_runs
from upft_mlx.inspection.side_by_side import side_by_side
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import EvaluationRow, write_json, write_rows
from upft_mlx.rundir import LedgerEntry, RunDir
from upft_mlx.rundir import written as digests
from upft_mlx.ui import tables

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_run(tmp_path: Path, make_recipe: MakeRecipe) -> Callable[..., RunDir]:
    """A run with answers; `1` is a right one."""

    def make(name: str, base: str, tuned: str, of: str = "same base", label: str = "dev", begin: int = 0) -> RunDir:
        run = RunDir(tmp_path / name)
        for variant, marks in (("base", base), ("tuned", tuned)):
            rows = [
                EvaluationRow(f"p{number}", 0, "text", "1", str(number), mark == "1", 3, "stop")
                for number, mark in enumerate(marks, begin)
            ]
            write_rows(run.rows_of(label, variant), rows)
        write_json(run.recipe, make_recipe(name=name).dump())
        entry = LedgerEntry("f", done=True, inputs={f"{label} base": of, f"{label} tuned": name})
        run.record("evaluate", LedgerEntry(**{**vars(entry), "outputs": digests("evaluate", run.root)}))
        return run

    return make


def test_the_base_that_runs_share_is_one_model(make_run: Callable[..., RunDir]) -> None:
    runs = [make_run("a", "0011", "0111"), make_run("b", "0011", "1111")]
    found = side_by_side(runs)
    table = found.benchmarks["dev"]
    assert [(model.name, model.accuracy) for model in table.models] == [("base", 0.5), ("a", 0.75), ("b", 1.0)]
    assert [(pair.first, pair.second, pair.delta) for pair in table.pairs] == [
        ("base", "a", 0.25),
        ("base", "b", 0.5),
        ("a", "b", 0.25),
    ]
    assert found.comparisons == 3


def test_other_bases_are_other_models(make_run: Callable[..., RunDir]) -> None:
    table = side_by_side([make_run("a", "0011", "0111"), make_run("b", "0010", "1111", of="another")]).benchmarks["dev"]
    assert [model.name for model in table.models] == ["base of a", "a", "base of b", "b"]
    assert len(table.pairs) == 6


def test_the_largest_share_that_rounding_changed_is_shown_and_no_smaller_difference_is_claimed(
    make_run: Callable[..., RunDir],
) -> None:
    runs = [make_run("a", "0" * 40, "0" * 40), make_run("b", "0" * 40, "0" * 30 + "1" * 10)]
    plain = side_by_side(runs).benchmarks["dev"]
    assert plain.rounding is None
    assert plain.pairs[2].p_value < 0.05
    for run, marks in zip(runs, ("0000", "0100"), strict=True):  # of four answers that were asked again
        again = [EvaluationRow(f"p{n}", 0, "text", "1", str(n), mark == "1", 3, "stop") for n, mark in enumerate(marks)]
        write_rows(run.rows_of("dev", AGAIN), again)
    table = side_by_side(runs).benchmarks["dev"]
    assert table.rounding == 0.25
    assert [pair.p_value for pair in table.pairs] == [1.0, 1.0, 1.0]
    target = console(80, color_system=None)
    tables.print_side_by_side(side_by_side(runs).dump(), console=target)
    assert "rounding alone changes 25.0 % of grades; no smaller difference is claimed" in written(target)


def test_only_problems_that_all_have_count(make_run: Callable[..., RunDir]) -> None:
    table = side_by_side([make_run("a", "0011", "0111"), make_run("b", "1100", "1011", begin=1)]).benchmarks["dev"]
    assert table.problems == 3
    assert [model.accuracy for model in table.models] == [2 / 3, 1.0, 2 / 3]


def test_what_has_nothing_in_common_is_refused(
    make_run: Callable[..., RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_run("a", "01", "01")
    with pytest.raises(RunDirError, match="no benchmark in common: a has dev; b has other"):
        side_by_side([first, make_run("b", "01", "01", label="other")])
    with pytest.raises(RunDirError, match="no problem in common"):
        side_by_side([first, make_run("c", "01", "01", begin=7)])
    with pytest.raises(RunDirError, match="no benchmark 'x' in all of these runs"):
        side_by_side([first, make_run("d", "01", "01")], ["x"])
    with pytest.raises(RunDirError, match="are the same run"):
        find_runs([str(tmp_path / "a"), str(tmp_path / "d" / ".." / "a")])
    make_run("A", "01", "01")
    assert len(find_runs([str(tmp_path / "a"), str(tmp_path / "A")])) == 2
    with monkeypatch.context() as mac:  # its file system takes one case for the other
        mac.setattr(Path, "samefile", lambda one, other: str(one).lower() == str(other).lower())
        with pytest.raises(RunDirError, match="are the same run"):
            find_runs([str(tmp_path / "a"), str(tmp_path / "A")])
    rows = first.rows_of("dev", "tuned")
    rows.write_text(rows.read_text().replace("text", "changed"))
    with pytest.raises(RunDirError, match="was changed after"):
        side_by_side([first, make_run("e", "01", "01")])


def test_the_screen_leads_with_what_differs(make_run: Callable[..., RunDir]) -> None:
    runs = [make_run("a", "0" * 40, "0" * 40), make_run("b", "0" * 40, "1" * 40)]
    target = console(80, color_system=None)
    tables.print_side_by_side(side_by_side(runs).dump(), console=target)
    lines = written(target).splitlines()
    assert lines[1] == "b is better than base on dev; b is better than a on dev"
    assert any(line.startswith("+100.0 [") and line.endswith("b - a") for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_a_long_interval_keeps_its_distance_from_p(make_run: Callable[..., RunDir]) -> None:
    """`-100.0 [-100.0, -88.4]p < 0.001`"""
    runs = [make_run("a", "1" * 40, "1" * 40), make_run("b", "1" * 40, "0" * 40)]
    target = console(80, color_system=None)
    tables.print_side_by_side(side_by_side(runs).dump(), console=target)
    pairs = [line for line in written(target).splitlines() if line.endswith((" - base", " - a"))]
    assert len(pairs) == 3
    assert len({line.index("  p ") for line in pairs if "p < " in line}) == 1
    assert all("]  " in line for line in pairs)


def test_a_run_whose_name_is_base_is_not_taken_for_the_base_model(make_run: Callable[..., RunDir]) -> None:
    """Its answers took the place of base's: the table had two models of three."""
    table = side_by_side([make_run("base", "0000", "1111"), make_run("b", "0000", "0111")]).benchmarks["dev"]
    found = [(model.name, model.accuracy) for model in table.models]
    assert found == [("base", 0.0), ("tuned of base", 1.0), ("b", 0.75)]


def test_show_takes_several_runs(make_run: Callable[..., RunDir]) -> None:
    roots = [str(make_run(name, "0011", "0111").root) for name in "ab"]
    done = CliRunner().invoke(cli, ["show", *roots])
    assert done.exit_code == 0
    assert "no two of these models differ measurably" in done.output
    assert CliRunner().invoke(cli, ["show", *roots, "--flips"]).exit_code == 2
