"""The table of stages: all that handles stages follows from it, and a command is near the work that it starts."""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.runs import RECIPE, RUN, made, run_stage, shown, there

import upft_mlx.__main__
from upft_mlx.cli.group import SECTIONS, cli
from upft_mlx.cli.run import stage_command
from upft_mlx.errors import RunDirError
from upft_mlx.events import Event, StageStarted
from upft_mlx.job import Job, Outcome
from upft_mlx.rows import TrainingRow, read_json, read_rows, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.stages import STAGES, Stage, before, in_run
from upft_mlx.training.step import Stepper

__all__ = ["made", "there"]
PACKAGE = Path(upft_mlx.__file__).parent


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stages_module_has_its_three_functions(stage: Stage) -> None:
    functions = {name: inspect.signature(getattr(stage.code, name)) for name in ("inputs", "announce", "work")}
    assert list(functions["inputs"].parameters) == ["job"]
    assert list(functions["announce"].parameters) == ["job"]
    assert list(functions["work"].parameters)[:2] == ["job", "run"]
    assert functions["work"].return_annotation == "Outcome"


def test_a_stage_comes_after_what_it_reads_and_owns_its_outputs() -> None:
    names = list(STAGES)
    for name, stage in STAGES.items():
        assert {*stage.needs, *stage.uses} <= set(names[: names.index(name)])
    outputs = [output for stage in STAGES.values() for output in (*stage.outputs, *stage.scratch)]
    assert len(outputs) == len(set(outputs))
    assert before("fuse") == ["generate", "build", "train"]


def test_every_stage_has_a_command_and_its_line_in_the_help() -> None:
    assert set(STAGES) <= set(cli.commands)
    lines = {name: f"Stage {n}: {STAGES[name].summary}" for n, name in enumerate(in_run(), 1)}
    assert {**lines, "run": SECTIONS["Run"]["run"]} == SECTIONS["Run"]


# A stage that is added to the table.


class Counting(ModuleType):
    """The module of a stage that counts the training rows."""

    worked = 0

    @staticmethod
    def inputs(job: Job) -> dict[str, Any]:
        return job.inputs.fields("name")

    @staticmethod
    def announce(job: Job) -> StageStarted:
        return StageStarted("count", f"the rows of {job.recipe.name}")

    def work(self, job: Job, run: RunDir) -> Outcome:
        self.worked += 1
        count = len(list(read_rows(job.run.train, TrainingRow)))
        write_json(run.place("counts.json"), {"rows": count})
        return Outcome(f"{count} rows counted")


@pytest.fixture
def counting(there: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """The stage `count` in the table, with its command; the run that is there was made without it."""
    module = Counting("upft_mlx.counting")
    monkeypatch.setitem(sys.modules, "upft_mlx.counting", module)
    stage = Stage(
        name="count",
        home="counting",
        summary="count the rows.",
        help="Count the rows.",
        outputs=("counts.json",),
        needs=("build",),
        adopted_as="The counts",
    )
    monkeypatch.setitem(STAGES, "count", stage)
    monkeypatch.setattr(cli, "commands", {**cli.commands})
    stage_command(stage)
    return module


def test_an_added_stage_runs_once_and_is_in_ledger_report_and_show(counting: Counting) -> None:
    assert "rows counted" in shown("run", "r.yaml", "--plain")
    rows = read_json(RUN.root / "counts.json")["rows"]
    entry = RUN.entries()["count"]
    assert (entry.done, list(entry.outputs), entry.detail) == (True, ["counts.json"], f"{rows} rows counted")
    assert set(entry.inputs or {}) == {"name", "build stage"}
    assert f"{rows} rows counted" in RUN.report.read_text()
    assert f"{rows} rows counted" in shown("show", "runs/r", "--verbose")
    assert f"current: {rows} rows counted" in shown("run", "r.yaml", "--plain")
    assert counting.worked == 1


def test_an_added_stage_runs_again_when_what_it_needs_did_and_keeps_the_version_before(counting: Counting) -> None:
    shown("count", "r.yaml", "--plain")
    run_stage("build", "prefix.template= Go.")
    assert "rows counted" not in shown("show", "runs/r", "--verbose"), "it counted rows that are no longer there"
    with pytest.raises(RunDirError, match=r"count needs the stage build, which was done with other settings"):
        run_stage("count")
    run_stage("count", "prefix.template= Go.")
    assert counting.worked == 2
    assert [path.name for path in RUN.kept.glob("count-*/*.json") if path.name != "entry.json"] == ["counts.json"]
    shown("run", "r.yaml", "--plain")
    assert counting.worked == 2, "the version of the recipe's own settings comes back"


def test_the_output_of_an_added_stage_that_was_changed_is_refused_and_can_be_adopted(counting: Counting) -> None:
    shown("count", "r.yaml", "--plain")
    write_json(RUN.root / "counts.json", {"rows": 0})
    assert "counts.json: was changed after `upft count` wrote it" in shown("run", "r.yaml", "--plain", status=1)
    assert "counts.json: adopted" in shown("adopt", "runs/r")
    shown("run", "r.yaml", "--plain")
    assert "The counts were changed by hand" in (RUN.fused / "README.md").read_text()
    assert counting.worked == 1


def test_an_added_stage_that_fails_leaves_nothing_and_its_costs_are_no_result(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "work", lambda job, run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_stage("count")
    assert not (RUN.root / "counts.json").exists()
    assert "count" not in RUN.entries()


@pytest.mark.usefixtures("there")
def test_a_forecast_with_other_settings_leaves_the_run_s_recipe() -> None:
    """It took the recipe's place: `show` lost benchmarks, and `export` refused the run by its own name."""
    before = RUN.recipe.read_bytes()
    other = ("forecast.problems=8", "forecast.samples=2", "forecast.lengths=[2]", "forecast.continuations=1")
    sets = [part for text in (*other, "problems.limit=9", "generate.max_tokens=16") for part in ("--set", text)]
    shown("forecast", "r.yaml", "--plain", *sets)
    assert RUN.entries()["forecast"].done
    assert RUN.recipe.read_bytes() == before
    shown("forecast", "r.yaml", "--plain", "--run-dir", "runs/new", *sets)
    assert json.loads(Path("runs/new/recipe.json").read_text())["problems"]["limit"] == 9


@pytest.mark.usefixtures("there")
def test_nothing_that_is_no_part_of_the_run_replaces_its_recipe() -> None:
    """An analysis that came back and `upft answers` did, and the next `upft show` read the wrong recipe."""
    before = RUN.recipe.read_bytes()
    small = ("problems=8", "samples=2", "trajectories=2", "rollouts=1", "lengths=[0,2]")
    sets = [part for text in small for part in ("--set", f"analyze.{text}")]
    other = ("--set", "generate.temperature=0.9")
    for changed in (other, (), other):
        said = shown("analyze", "r.yaml", "--plain", *sets, *changed)
        assert RUN.recipe.read_bytes() == before
    assert "an earlier version comes back" in said
    shown("answers", "r.yaml", "--plain", "--set", "forecast.problems=8", *other)
    assert RUN.entries()["answers"].done
    assert RUN.recipe.read_bytes() == before


# From the command to the work.


@pytest.mark.usefixtures("there")
def test_upft_train_reaches_the_training_loop_in_at_most_8_frames_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[tuple[str, str]] = []

    def stop(*_: Any) -> None:
        stack = [f for f in traceback.extract_stack() if PACKAGE in Path(f.filename).parents]
        frames.extend((str(Path(f.filename).relative_to(PACKAGE)), f.name) for f in stack)
        raise KeyboardInterrupt

    monkeypatch.setattr(Stepper, "step", stop)
    monkeypatch.setattr(sys, "argv", ["upft", "train", "r.yaml", "--plain", "--set", "lora.rank=3"])
    with pytest.raises(SystemExit):
        upft_mlx.__main__.main()
    to_the_loop = frames[: frames.index(("training/train.py", "train")) + 1]
    assert to_the_loop[0] == ("__main__.py", "main")
    assert len(to_the_loop) <= 8, frames


# A command that is refused.


@pytest.mark.parametrize("command", ["build", "train", "fuse", "export --format peft", "push --dry-run"])
def test_a_command_that_is_refused_leaves_nothing_that_it_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    Path("r.yaml").write_text(RECIPE)
    before = sorted(tmp_path.rglob("*"))
    name, *options = command.split()
    for folder in ("runs/r", "own", "own/runs/r"):
        said = shown(name, "r.yaml", *options, "--run-dir", folder, status=1)
        assert "needs the stage generate, which is not done" in said
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("there")
def test_an_evaluation_that_made_nothing_leaves_no_look() -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, StageStarted):
            raise KeyboardInterrupt

    before = sorted(RUN.root.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        run_stage("evaluate", look="other", notify=interrupt)
    assert sorted(RUN.root.rglob("*")) == before


@pytest.mark.usefixtures("there")
def test_a_lock_that_another_process_has_just_removed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: (RUN.root / ".lock").unlink())
    with pytest.raises(RunDirError, match="another upft process"), RUN.locked():
        pass
