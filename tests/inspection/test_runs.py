"""`upft runs`: what it says of several runs, and that a damaged one does not hide the others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.input import upft, write
from helpers.runs import made, there
from helpers.ui import console, written

from upft_mlx.rows import read_json
from upft_mlx.ui.tables import print_runs

__all__ = ["made", "there"]


@pytest.fixture
def several(there: Path) -> Path:
    """Three runs: the finished one, one of another prefix length with a claim, one that has not been trained."""
    first = there / "runs" / "r"
    second, third = (Path(shutil.copytree(first, there / "runs" / name)) for name in ("second", "third"))
    recipe = read_json(second / "recipe.json")
    recipe["prefix"]["length"], recipe["name"] = 4, "second"
    recipe["evaluate"]["benchmarks"][0]["limit"] = 5
    (second / "recipe.json").write_text(json.dumps(recipe))
    for ledger in (third / "ledger.json", third / ".ledger.json"):
        entries = json.loads(ledger.read_text())
        ledger.write_text(json.dumps({"generate": entries["generate"]}))
    for number, run in enumerate((first, second, third)):
        for name in ("recipe.json", "ledger.json"):
            os.utime(run / name, (1_700_000_000 + 3600 * number,) * 2)
    return there


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = upft("runs", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return list(json.loads(done.stdout))


def test_the_newest_run_stands_first_with_its_verdict_and_what_differs(several: Path) -> None:
    third, second, first = listed()
    assert [Path(run["run"]).name for run in (third, second, first)] == ["third", "second", "r"]
    assert third["verdict"] == "Nothing is measured yet"
    assert third["stages"] == ["generate"]
    assert second["differs"].pop("prefix.length") == "4"
    assert second["differs"] == {"evaluate.benchmarks": '[{"name": "arithmetic", "limit": 5}]'}, "no defaults"
    assert first["differs"] == third["differs"] == {}
    paired = read_json(several / "runs/r/evaluation/summary.json")["benchmarks"]["arithmetic"]["paired"]
    assert first["benchmarks"]["arithmetic"] == {key: paired[key] for key in ("delta", "ci95", "p_value")}
    assert first["verdict"] == "Can't tell yet on arithmetic"


def test_the_list_for_people_has_the_same(several: Path) -> None:
    done = upft("runs")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("third  2023-11-")
    assert "  not done: train, evaluate" in lines
    assert "  prefix.length=4" in lines
    elsewhere = [{**run, "stages": ["evaluate"]} for run in listed()]  # as `upft evaluate --model M --adapter A` makes
    wide = console(80, color_system=None)
    print_runs(elsewhere, console=wide)
    assert written(wide).count("not done: train") == 1, "what was compared has an adapter from elsewhere"
    assert lines.count("  Can't tell yet on arithmetic") == 2
    assert any(line.startswith("    +0.0 [") and line.endswith("arithmetic") for line in lines)
    assert lines[-1] == "field=value: where a recipe differs from most of the others"
    narrow = console(40, color_system=None)
    print_runs(listed(), console=narrow)
    settings = [line for line in written(narrow).splitlines() if "=" in line and not line.startswith("field=value")]
    assert settings == ["  prefix.length=4", '  evaluate.benchmarks=[{"name": "arithm…']


def test_a_changed_summary_and_a_damaged_recipe_are_named_and_the_others_shown(several: Path) -> None:
    (several / "runs/second/evaluation/summary.json").write_text('{"benchmarks": {}}')
    (several / "runs/third/recipe.json").write_text("{")
    errors = {Path(run["run"]).name: run["error"] for run in listed()}
    assert errors["r"] is None
    assert "summary.json: was changed" in errors["second"]
    assert "third/recipe.json" in errors["third"]
    assert "Can't tell yet on arithmetic" in upft("runs").stdout


def test_where_there_is_no_run_it_says_what_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = upft("runs")
    assert done.exit_code == 1
    assert "runs: no runs here; `upft demo` makes one" in done.stderr


def test_answers_of_an_earlier_adapter_get_a_warning_and_a_look_belongs_to_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "own.yaml",
        "model: builtin:arithmetic\nproblems: {builtin: arithmetic, limit: 12}\ngenerate: {max_tokens: 40}\n"
        "train: {steps: 1}\nevaluate: {max_tokens: 40, benchmarks: [{name: arithmetic, limit: 4}]}\n",
    )
    for stage in ("generate", "build", "train", "evaluate"):
        assert upft(stage, "own.yaml").exit_code == 0
    assert upft("evaluate", "own.yaml", "--limit", "2").exit_code == 0
    shutil.copytree("runs/own", "runs/other")
    (look,) = Path("runs/own/looks").iterdir()
    shown = [
        ("own", "--flips"),
        ("own", "--rows", "--json"),
        ("own", "--grade"),
        ("own", "other"),
        (str(look), "--rows"),
    ]
    assert {upft("show", *arguments).stderr for arguments in shown} == {""}
    assert "not shown" not in upft("show", look).stdout
    assert upft("train", "own.yaml", "--set", "train.learning_rate=0.1").exit_code == 0
    for arguments in shown:
        (said,) = upft("show", *arguments).stderr.splitlines()
        assert "these answers are out of date, because an earlier stage has run again since" in said
        assert ("`upft evaluate runs/own` with the same options as then" in said) is (arguments[0] == str(look))
    assert upft("generate", "own.yaml", "--set", "seed=9").exit_code == 0
    assert "not shown, made with an earlier version of the stages above: evaluate" in upft("show", look).stdout
