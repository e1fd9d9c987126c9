"""`upft evaluate` without a recipe, and `upft show`: what they print, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.base_and_tuned import write_adapter
from helpers.input import assert_fails, upft, write
from helpers.show import TMUX, wait_for

from upft_mlx.data.benchmarks import resolve
from upft_mlx.errors import RecipeError
from upft_mlx.grade.correct import VERSION
from upft_mlx.recipe.override import recipe_for_model, with_benchmarks
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import RunDir


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), size=0.06)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Path:
    """A run that was evaluated without a recipe."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    shown = upft("evaluate", "--model", MODEL, "--adapter", adapter, "--limit", "24", "--run-dir", folder, "--json")
    assert shown.exit_code == 0, shown.stderr
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(run: Path, variant: str) -> list[EvaluationRow]:
    return list(read_rows(run / "evaluation" / "arithmetic" / f"{variant}.jsonl", EvaluationRow))


def changed(run: Path) -> list[EvaluationRow]:
    pairs = zip(rows(run, "base"), rows(run, "tuned"), strict=True)
    return [tuned for base, tuned in pairs if base.correct != tuned.correct]


# Without a recipe.


def test_any_model_is_evaluated_without_a_recipe_and_json_is_all_that_stdout_holds(folder: Path) -> None:
    own = '{"question": "Mia has 2 pens and gets 3 more. How many?", "answer": "5"}\n' * 1
    write(folder / "own.jsonl", own)
    shown = upft(
        "evaluate", "--model", MODEL, "--benchmark", "arithmetic", "--benchmark", "own.jsonl", "--limit", "3", "--json"
    )
    assert shown.exit_code == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert {name: found["base"]["n"] for name, found in facts["benchmarks"].items()} == {
        "arithmetic": 3,
        "own": 1,
    }
    assert [stage["stage"] for stage in facts["stages"]] == ["evaluate"]
    assert (folder / "runs/evaluate-model/evaluation/summary.json").exists()


def test_alone_it_measures_the_embedded_problems(folder: Path) -> None:
    shown = upft("evaluate", "--model", "builtin:arithmetic", "--limit", "2")
    assert shown.exit_code == 0, shown.stderr
    assert "arithmetic" in shown.stdout
    assert "n 2, greedy" in shown.stdout


def test_with_an_adapter_both_variants_are_compared(measured: Path) -> None:
    summary = json.loads((measured / "evaluation/summary.json").read_text())["benchmarks"]["arithmetic"]
    assert summary["paired"]["gained"] + summary["paired"]["lost"] == len(changed(measured)) > 0
    assert summary["base"]["n"] == summary["tuned"]["n"] == 24


ANY = ("--model", "builtin:arithmetic")


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        ([], 2, "give a RECIPE, or a model with --model"),
        (["quickstart", *ANY], 2, "not both"),
        ([*ANY, "--benchmark", "gsm8"], 2, "did you mean 'gsm8k'?"),
        ([*ANY, "--limit", "0"], 2, "--limit"),
        ([*ANY, "--subset", "level"], 2, "--subset level: expected level=VALUE"),
        ([*ANY, "--subset", "size=3"], 2, "--subset size=3: expected level=VALUE"),
        ([*ANY, "--subset", "level=3"], 1, "its problems have no level"),
        ([*ANY, "--set", "evaluate.samplse=3"], 2, "evaluate.samplse: unknown field"),
        (["--model", "no such thing"], 2, "neither a folder nor a Hub id"),
        ([*ANY, "--adapter", "nowhere", "--limit", "1"], 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_refused_with_what_to_do(folder: Path, arguments: list[str], status: int, part: str) -> None:
    shown = upft("evaluate", *arguments)
    assert shown.exit_code == status, shown.stderr
    assert part in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_options_narrow_a_recipe() -> None:
    recipe = recipe_for_model("builtin:arithmetic", ["evaluate.samples=4", "evaluate.temperature=0.5"])
    assert [entry.name for entry in recipe.evaluate.benchmarks] == ["arithmetic"]
    few = with_benchmarks(recipe, ["gsm8k", "math500"], 7, ["level=4", "level=5", "subject=Algebra"])
    for entry in few.evaluate.benchmarks:
        assert entry.limit == 7
        assert entry.subset == {"level": ("4", "5"), "subject": ("Algebra",)}
    assert few.evaluate.samples == 4
    assert [entry.name for entry in with_benchmarks(few, limit=2).evaluate.benchmarks] == ["gsm8k", "math500"]
    assert with_benchmarks(few, limit=2).evaluate.benchmarks[0].subset == {"level": ("4", "5"), "subject": ("Algebra",)}


def test_files_of_one_name_and_names_that_are_no_folders_get_labels_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a/t.jsonl", "b/T.jsonl", "gsm8k.jsonl", ".hid.jsonl", "summary.json.gz", "x\\y.csv"]
    for name in names:
        write(Path(name), '{"question": "1 + 1", "answer": "2"}\n')
    recipe = recipe_for_model("builtin:arithmetic")
    entries = resolve(with_benchmarks(recipe, [*names, "gsm8k"]).evaluate)
    assert [entry.label for entry in entries] == ["t", "T-2", "gsm8k-2", "_hid", "summary.json-2", "x_y", "gsm8k"]
    assert [entry.path for entry in entries] == [*(str(tmp_path / name) for name in names), None]
    assert [entry.name for entry in entries][2] == "gsm8k", "graded as GSM8K is"
    for twice in (["gsm8k", "gsm8k"], ["a/t.jsonl", "a/../a/t.jsonl"]):
        with pytest.raises(RecipeError, match=f"--benchmark {twice[1]}: is given twice; give each once"):
            with_benchmarks(recipe, twice)
    with pytest.raises(RecipeError, match=r"'none/t.jsonl': unknown benchmark; check the path"):
        resolve(with_benchmarks(recipe, ["none/t.jsonl"]).evaluate)


# Show.


def test_show_prints_the_report(measured: Path) -> None:
    shown = upft("show", measured)
    assert shown.exit_code == 0, shown.stderr
    summary = json.loads((measured / "evaluation/summary.json").read_text())["benchmarks"]["arithmetic"]
    assert f"{100 * summary['base']['accuracy']:.1f} % [" in shown.stdout
    assert json.loads(upft("show", measured, "--json").stdout)["benchmarks"]["arithmetic"] == summary


def test_show_lists_the_flips_with_both_answers(measured: Path) -> None:
    flipped = changed(measured)
    text = upft("show", measured, "--flips").stdout
    for row in flipped:
        assert any(line.startswith(f"arithmetic {row.problem_id} ") for line in text.splitlines())
    assert text.count("arithmetic evaluation-") == len(flipped)
    gained = sum(row.correct for row in flipped)
    for title, count in (("wrong → right", gained), ("right → wrong", len(flipped) - gained)):
        assert (f"{title}: {count}" in text) == (count > 0)
    items = json.loads(upft("show", measured, "--flips", "--json").stdout)
    assert [item["problem_id"] for item in items] == [row.problem_id for row in flipped]
    assert all(item["base"]["correct"] != item["tuned"]["correct"] for item in items)
    assert all(item["question"] for item in items)


def test_show_lists_every_row(measured: Path) -> None:
    text = upft("show", measured, "--rows").stdout
    assert text.count("arithmetic evaluation-") == 24
    signs = sum(row.correct for variant in ("base", "tuned") for row in rows(measured, variant))
    assert text.count("✓") == signs


def test_show_grades_stored_rows_again_and_writes_nothing(measured: Path, folder: Path) -> None:
    run = folder / "run"
    shutil.copytree(measured, run)
    assert {row.grader for row in rows(run, "base")} == {VERSION}
    path = run / "evaluation" / "arithmetic" / "base.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    old = [
        {**line, "correct": not line["correct"] if place in (3, 7) else line["correct"]}
        for place, line in enumerate(lines)
    ]
    for line in old:
        del line["grader"]  # as the first version wrote them
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    before = path.read_bytes()
    facts = json.loads(upft("show", run, "--grade", "--json").stdout)
    found = facts["benchmarks"]["arithmetic"]
    assert facts["grader"] == VERSION
    assert found["base"]["graders"] == [1]
    assert [row["problem_id"] for row in found["base"]["changed"]] == [lines[3]["problem_id"], lines[7]["problem_id"]]
    assert [row["correct_now"] for row in found["base"]["changed"]] == [lines[3]["correct"], lines[7]["correct"]]
    assert found["base"]["regraded"] == sum(line["correct"] for line in lines) / 24
    assert found["tuned"]["changed"] == []
    text = upft("show", run, "--grade").stdout
    assert "2 of 24 rows would change (graded by version 1)" in text
    assert all(line["problem_id"] in text for line in (lines[3], lines[7]))
    assert path.read_bytes() == before
    assert_fails(upft("show", run, "--grade", "--benchmark", "gsm8k"), 1, "no benchmark 'gsm8k'")


def test_show_has_one_problem_whole(measured: Path) -> None:
    row = changed(measured)[0]
    text = upft("show", measured, "--problem", row.problem_id).stdout
    for line in row.completion.splitlines():
        assert line[:60].rstrip() in text
    assert f"gold  {row.gold}" in text
    assert f"{row.tokens} tokens" in text
    assert_fails(upft("show", measured, "--problem", row.problem_id + "0"), 1, "did you mean", row.problem_id)
    assert_fails(
        upft("show", measured, "--problem", "!"), 1, "no problem '!' among the rows; `upft show RUN --rows` lists"
    )


def test_show_without_flips_says_so(folder: Path, measured: Path) -> None:
    shutil.copytree(measured, folder / "runs" / "same")
    rows = folder / "runs/same/evaluation/arithmetic"
    shutil.copy(rows / "base.jsonl", rows / "tuned.jsonl")
    for name in ("ledger.json", ".ledger.json"):
        (folder / "runs/same" / name).unlink()
    shown = upft("show", "same", "--flips")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.splitlines()[0] == "no flips: base and tuned are right on the same problems"


def test_show_claims_nothing_of_what_was_not_measured(folder: Path, measured: Path) -> None:
    """It said that base and tuned agree on every problem."""
    shutil.copytree(measured, folder / "runs" / "one")
    for name in ("ledger.json", ".ledger.json"):
        (folder / "runs/one" / name).unlink()
    (folder / "runs/one/evaluation/arithmetic/tuned.jsonl").unlink()
    evaluate = "run `upft evaluate runs/one`"
    assert_fails(upft("show", "one", "--flips"), 1, "base and tuned have not both been measured yet", evaluate)
    assert upft("show", "one", "--rows").exit_code == 0
    shutil.rmtree(folder / "runs/one/evaluation")
    for option in ("--flips", "--rows", "--grade"):
        assert_fails(upft("show", "one", option), 1, "runs/one: nothing has been measured yet", evaluate)


def test_questions_that_are_gone_cost_only_themselves(folder: Path, measured: Path) -> None:
    write(folder / "own.jsonl", '{"question": "Mia has 2 pens and gets 3 more?", "answer": "5"}\n')
    upft("evaluate", "--model", MODEL, "--benchmark", "own.jsonl", "--run-dir", "runs/own")
    (folder / "own.jsonl").unlink()
    shown = upft("show", "own", "--problem", "0")
    assert shown.exit_code == 0, shown.stderr
    assert "no longer available" in shown.stdout


def test_a_run_is_found_by_name_and_its_absence_names_the_others(folder: Path, measured: Path) -> None:
    assert_fails(upft("show", "nothing"), 1, "nothing: not a run directory", "there is no run in runs/ yet")
    shutil.copytree(measured, folder / "runs" / "mine")
    assert upft("show", "mine").exit_code == 0
    assert_fails(upft("show", "nothing"), 1, "in runs/ there are mine")
    assert_fails(
        upft("show", "mine", "--flips", "--benchmark", "other"), 1, "no benchmark 'other'; this run has arithmetic"
    )
    write(folder / "runs/mine/recipe.json", '{"no": "recipe"}')
    assert_fails(upft("show", "mine"), 1, "not a recipe of this version")


def test_a_command_in_an_error_can_be_pasted_into_a_shell(folder: Path, measured: Path) -> None:
    """Folders and recipes with a space in their names made other commands of them."""
    mine, again = Path("my runs/one"), "upft evaluate 'my runs/one'"
    shutil.copytree(measured, mine)
    (mine / "evaluation" / "summary.json").write_text("{}")
    assert_fails(upft("show", str(mine)), 1, f"`{again}` makes it again")
    assert_fails(upft("adopt", str(mine)), 1, f"`{again}` makes it again")
    assert f"`{again}` makes it again" in upft("runs", str(mine.parent)).stdout
    shutil.rmtree(mine / "evaluation")
    RunDir(mine).record("evaluate", None)
    for shown in ((str(mine), "--flips"), (str(mine), str(measured))):
        assert_fails(upft("show", *shown), 1, f"run `{again}`")
    write(folder / "my recipe.yaml", "name: other\nmodel: builtin:arithmetic\nproblems: {builtin: arithmetic}\n")
    assert_fails(upft("show", "my recipe.yaml"), 1, "`upft run 'my recipe.yaml'` makes it")


def test_a_run_is_found_by_the_recipe_file_that_made_it(folder: Path, measured: Path) -> None:
    write(folder / "mine.yaml", "name: other\nmodel: builtin:arithmetic\nproblems: {builtin: arithmetic}\n")
    assert_fails(upft("show", "mine.yaml"), 1, "mine.yaml: runs/other is not there yet", "`upft run mine.yaml`")
    shutil.copytree(measured, folder / "runs" / "other")
    assert upft("show", "mine.yaml").stdout == upft("show", "other").stdout
    write(folder / "mine.yaml", "modle: builtin:arithmetic\n")
    assert_fails(upft("show", "mine.yaml"), 2, "mine.yaml:1: modle: unknown field")


# A terminal.


@pytest.mark.slow
@pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_view_in_a_real_terminal(width: int, height: int, adapter: Path, tmp_path: Path) -> None:
    """Key numbers on the screen while it runs, after a resize, at Ctrl-C, and as summary.json has them at the end."""
    session, run = f"upft-{os.getpid()}-{width}", tmp_path / "run"
    command = f"{sys.executable} -m upft_mlx evaluate --model {MODEL} --adapter {adapter} --limit 64 --run-dir {run}"
    tmux = ["tmux", "-L", session]
    size = ["-x", str(width), "-y", str(height)]
    environment = [f"-e{name}={os.environ[name]}" for name in ("PYTHONPATH",) if name in os.environ]
    subprocess.run(
        [*tmux, "-f", "/dev/null", "new-session", "-d", "-s", session, *size, *environment, "sh"], check=True
    )
    try:
        subprocess.run(
            [*tmux, "send-keys", "-t", session, f"{command} --set evaluate.batch_size=8", "Enter"], check=True
        )
        text = wait_for(session, r"(?s)✗→✓.*tuned - base")
        assert re.search(r"\d+/128 completions · [\d,]+ tokens/s · [\d.]+ [MG]B · 0:\d\d elapsed", text)
        assert re.search(r"arithmetic +.*\d+ % +\d+\.\d % \[\d+\.\d, \d+\.\d\] +\d+\.\d % \[", text)
        assert max(map(len, text.splitlines())) <= width
        subprocess.run([*tmux, "resize-window", "-t", session, "-x", "64", "-y", "20"], check=True)
        time.sleep(0.5)
        wait_for(session, r"arithmetic +\d+ % +\d+\.\d %")
        subprocess.run([*tmux, "send-keys", "-t", session, "C-c"], check=True)
        wait_for(session, r"interrupted;\s+run\s+the\s+same\s+command")
        kept = sum(len(path.read_text().splitlines()) for path in run.rglob("evaluation/*/*.jsonl"))
        assert 0 < kept < 128
        subprocess.run([*tmux, "resize-window", "-t", session, *size], check=True)
        subprocess.run(
            [*tmux, "send-keys", "-t", session, f"clear; {command} --set evaluate.batch_size=8", "Enter"], check=True
        )
        text = wait_for(session, r"page +/")
        summary: dict[str, Any] = json.loads((run / "evaluation/summary.json").read_text())["benchmarks"]["arithmetic"]
        for variant in ("base", "tuned"):
            low, high = summary[variant]["ci95"]
            assert f"{100 * summary[variant]['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" in text
        assert f"{100 * summary['paired']['delta']:+.1f} [" in text
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
