"""What is finished is never lost: refused settings, reruns, looks, kills in the wrong moment, earlier layouts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import MODEL
from helpers.input import ONE_PROBLEM, upft, write
from helpers.runs import RECIPE, RUN, everywhere, files, made, run_stage, shown, there
from helpers.versions import ADAPTER, partial

from upft_mlx import pipeline, versions
from upft_mlx.api import export
from upft_mlx.events import Event, Graded, Note, Progress
from upft_mlx.fusing.exported import MANIFEST
from upft_mlx.inspection.page import write_page
from upft_mlx.job import Job, Outcome
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import beside, read_json, write_json
from upft_mlx.rundir import RunDir, remove
from upft_mlx.stages import STAGES
from upft_mlx.studies import demo
from upft_mlx.training import train

__all__ = ["made", "partial", "there"]

# A refused setting.


@pytest.mark.parametrize(
    ("stage", "setting", "message"),
    [
        ("train", "lora.num_layers=99", "lora.num_layers: 99, but the model has 4 layers only"),
        ("train", "lora.keys=[q_proj]", "lora.keys: no linear module 'q_proj' in the model's layers; they have mlp."),
        ("train", "train.max_length=8", "train.max_length: 8 tokens leave no room"),
        ("train", "train.learning_rate=1e+30", "lower train.learning_rate"),
        ("generate", "prompt.chat_template_args={messages: 3}", "the chat template refuses the prompt"),
        ("evaluate", "lora.rank=3", "evaluate would leave out the adapter, which was done with other settings"),
        ("fuse", "publish.min_retained=1.0", "these values of publish.fuse pass"),
    ],
)
@pytest.mark.usefixtures("there")
def test_a_refused_setting_leaves_every_finished_file(stage: str, setting: str, message: str) -> None:
    before = files(RUN.root)
    assert message in shown(stage, "r.yaml", "--plain", "--set", setting, status=1)
    assert files(RUN.root) == before
    assert not list(RUN.root.glob(".work/*/adapter/adapters.safetensors"))
    assert "skipped" in shown(stage, "r.yaml", "--plain")


@pytest.mark.parametrize("stage", ["generate", "build", "train", "evaluate", "fuse"])
@pytest.mark.usefixtures("there")
def test_a_stage_that_fails_in_its_last_moment_leaves_what_was_there(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(RUN.root)
    settings = {
        "generate": "generate.temperature=0.9",
        "build": "prefix.template= Go.",
        "train": "lora.rank=3",
        "evaluate": "evaluate.max_tokens=30",
        "fuse": "publish.fuse=bf16",
    }

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "finish", full)
    assert "make room" in shown(stage, "r.yaml", "--plain", "--set", settings[stage], status=1)
    assert files(RUN.root) == before
    monkeypatch.undo()


# Knowable before the first token.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.report_to=wandb", "wandb is not installed"),
        ("lora.num_layers=99", "4 layers only"),
        ("lora.keys=[nothing]", "no linear module 'nothing'"),
        ("train.max_length=8", "leave no room"),
        ("publish.repo=not a name", "is not a user/name"),
        ("evaluate.benchmarks=[{name: arithmetic, label: summary.json}]", "summary.json"),
        ("evaluate.benchmarks=[{name: arithmetic}, {name: arithmetic, label: Arithmetic}]", "Arithmetic"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.yaml", RECIPE)
    status = 2 if setting.startswith(("publish", "evaluate")) else 1
    assert message in shown("run", "r.yaml", "--plain", "--set", setting, status=status)
    assert not [path for path in RUN.root.rglob("*") if "solutions" in path.name]


# Reruns.


@pytest.mark.usefixtures("there")
def test_a_rerun_keeps_the_version_before_and_it_can_be_put_back() -> None:
    before = files(RUN.adapter)
    said = shown("train", "r.yaml", "--plain", "--set", "lora.rank=3")
    assert "train: runs again, changed: lora.rank=2; the version before will be in .kept" in said
    assert files(RUN.adapter) != before
    (kept,) = json.loads(shown("kept", "r", "--json"))["kept"]
    assert kept["settings"] == ["lora.rank=2"]
    assert kept["whole"]
    assert kept["name"] in shown("kept", "r.yaml")
    shown("kept", "runs/r", "--restore", kept["name"])
    assert files(RUN.adapter) == before
    assert read_json(RUN.recipe)["lora"]["rank"] == 2
    (other,) = json.loads(shown("kept", "r", "--json"))["kept"]
    assert other["settings"] == ["lora.rank=3"]
    shown("kept", "r", "--remove", other["name"])
    assert not RUN.kept.exists()
    assert "no kept version" in shown("kept", "r", "--restore", "train-1", status=1)
    assert "skipped: current" in shown("train", "r.yaml", "--plain")


@pytest.mark.usefixtures("there")
def test_settings_that_were_trained_before_bring_their_adapter_back_untrained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ADAPTER.read_bytes()
    run_stage("train", "lora.rank=3")
    monkeypatch.setattr(train, "train", None)
    assert "an earlier version comes back" in shown("train", "r.yaml", "--plain")
    assert ADAPTER.read_bytes() == before
    assert "an earlier version comes back" in shown("train", "r.yaml", "--plain", "--set", "lora.rank=3")


@pytest.mark.usefixtures("there")
def test_a_restored_adapter_brings_the_rows_that_it_was_trained_on() -> None:
    before = {name: data for name, data in files(RUN.root).items() if not name.startswith(("eval", "fus", "fid"))}
    pipeline.run(load_recipe("r.yaml", ["generate.temperature=3.0"]), RUN.root)
    assert files(RUN.root)["solutions.jsonl"] != before["solutions.jsonl"]
    name = next(version.name for version in versions.kept(RUN, "train"))
    shown("kept", "r", "--restore", name)
    after = files(RUN.root)
    for path in ("solutions.jsonl", "dataset/train.jsonl", "adapter/adapters.safetensors", "metrics.jsonl"):
        assert after[path] == before[path]
    assert "runs/r/export/peft" in shown("export", "runs/r", "--format", "peft")


@pytest.mark.usefixtures("there")
def test_what_is_kept_is_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "build", dataclasses.replace(STAGES["build"], keeps=2))
    for template in ("a", "b", "c", "d"):
        run_stage("build", f"prefix.template= {template}")
    kept = [version.entry.inputs for version in versions.kept(RUN, "build")]
    assert [inputs["prefix"]["template"] for inputs in kept if inputs] == ["c", "b"]


@pytest.mark.usefixtures("there")
def test_an_interrupted_training_with_other_settings_costs_no_other_one() -> None:
    """Two trainings in turns, each continued where it was left, while the finished adapter stays in place."""
    before = ADAPTER.read_bytes()

    def interrupting(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "train" and event.done == 2:
            raise KeyboardInterrupt

    for rank in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            run_stage("train", f"lora.rank={rank}", notify=interrupting)
        assert ADAPTER.read_bytes() == before
    assert len(versions.unfinished(RUN, "train")) == 2
    for rank in (3, 4):
        events: list[Event] = []
        run_stage("train", f"lora.rank={rank}", notify=events.append)
        assert Note("training continues after step 1") in events
    assert not RUN.work.exists()


@pytest.mark.usefixtures("there")
def test_the_refusal_says_what_differs_and_the_run_directory_goes_on_as_it_is() -> None:
    shown("train", "r.yaml", "--plain", "--set", "lora.rank=3")
    said = shown("export", "r.yaml", "--format", "peft", status=1)
    assert "export needs the stage train, which was done with other settings (lora.rank=3)" in said
    assert "name the folder runs/r instead of the recipe" in said
    assert "repeat its --set" in said
    for command, *options in (
        *(("export", "--format", "peft"), ("evaluate", "--plain"), ("fuse", "--plain"), ("push", "--dry-run")),
    ):
        shown(command, "runs/r", *options)
    assert read_json(RUN.root / "export/peft/adapter_config.json")["r"] == 3
    assert "3 steps" in shown("show", "runs/r", "--verbose")
    asked = json.loads(shown("ask", "runs/r", "2 + 2?", "--json"))
    assert asked["adapter"] == "runs/r/adapter"
    assert "skipped" in shown("train", "r", "--plain"), "a name in runs/ as well"
    shown("generate", "r.yaml", "--plain", "--set", "seed=3")
    shown("evaluate", "r.yaml", "--plain", "--set", "lora.rank=3")  # now the run's recipe has another seed again
    said = shown("train", "runs/r", status=1)
    assert "done with other settings (seed=3). To go on with it, repeat its --set; `upft generate`" in said
    shown("train", "runs/r", "--set", "seed=3", status=1)
    shown("build", "runs/r", "--set", "seed=3")
    RUN.recipe.write_text(RUN.recipe.read_text()[:100])  # damaged: a stage that is done writes it anew
    assert "train needs the stage generate, which was done with other" in shown("train", "r.yaml", status=1)


@pytest.mark.usefixtures("there")
def test_show_leaves_out_what_an_earlier_adapter_scored() -> None:
    assert "tuned" in shown("show", "r")
    run_stage("train", "lora.rank=3")
    write_page(RUN, (10**9, "RAM"))
    said = shown("show", "r")
    assert "report.html" not in said, "it is of the earlier adapter"
    assert "report.md" not in said
    assert "not shown, made with an earlier version of the stages above: evaluate, fuse" in said
    assert json.loads(shown("show", "r", "--json"))["benchmarks"] == {}


# Looks.


@pytest.mark.parametrize(
    "options", [["--limit", "2"], ["--benchmark", "own.jsonl"], ["--adapter", "other"], ["--limit", "3", "--plain"]]
)
def test_a_look_never_becomes_the_runs_report_or_card(there: Path, options: list[str]) -> None:
    write(there / "own.jsonl", ONE_PROBLEM)
    shutil.copytree(RUN.adapter, "other")
    before = files(RUN.root)
    facts = json.loads("{" + shown("evaluate", "r.yaml", "--json", *options).partition("{")[2])
    after = files(RUN.root)
    assert {name: after[name] for name in before} == before
    report = Path(facts["files"]["report"])
    assert report.parent.parent == RUN.looks
    assert report.read_text().startswith("# r")
    assert (report.parent / "report.svg").exists()
    shown("run", "r.yaml", "--plain")
    assert files(RUN.root)["fused/README.md"] == before["fused/README.md"]
    assert "6 x 1" in before["fused/README.md"].decode()


@pytest.mark.usefixtures("there")
def test_a_look_with_another_adapter_takes_the_bases_answers_over() -> None:
    shutil.copytree(RUN.adapter, "other")
    events: list[Event] = []
    run_stage("evaluate", adapter=Path("other"), look="other", notify=events.append)
    assert {e.resumed for e in events if isinstance(e, Graded) and e.variant == "base"} == {True}
    assert {e.resumed for e in events if isinstance(e, Graded) and e.variant == "tuned"} == {False}


@pytest.mark.parametrize("option", ["--limit", "--run-dir"])
@pytest.mark.usefixtures("there")
def test_an_option_that_would_be_ignored_is_refused(option: str) -> None:
    said = shown("evaluate", "r.yaml", option, "1", option, "2", status=2)
    assert f"{option} was given 2 times; give it once" in said


# Kills.


@pytest.mark.usefixtures("there")
def test_a_version_that_takes_its_place_can_be_killed_before_every_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each rename, and each write of the ledger and the plan: all old and new files are there, and it ends well."""
    shutil.copytree(RUN.root, "start", symlinks=True)
    outcomes: list[Outcome] = []

    def trained_once(job: Job, run: RunDir, real: Any = STAGES["train"].code.work) -> Outcome:
        folder = run.place("adapter").parent
        if not outcomes:
            outcomes.append(real(job, run))
            shutil.copytree(folder, "trained")
        shutil.copytree("trained", folder, dirs_exist_ok=True)
        return outcomes[0]

    monkeypatch.setattr(STAGES["train"].code, "work", trained_once)
    run_stage("train", "lora.rank=3")
    new, old = files(RUN.adapter), files(RUN.kept)
    for cut in itertools.count():
        remove(RUN.root)
        shutil.copytree("start", RUN.root)
        moves = itertools.count()

        def counted(real: Callable[..., Any], moves: Any = moves, cut: int = cut) -> Callable[..., Any]:
            def move(*arguments: Any) -> Any:
                if next(moves) == cut:
                    raise SystemExit
                return real(*arguments)

            return move

        with monkeypatch.context() as patched:
            patched.setattr(versions, "_transfer", counted(versions._transfer))
            patched.setattr(versions, "write_json", counted(write_json))
            patched.setattr(RunDir, "record", counted(RunDir.record))
            try:
                run_stage("train", "lora.rank=3")
            except SystemExit:
                assert set(files(Path("start/adapter")).values()) <= everywhere(RUN.root)
            else:
                break
        run_stage("train", "lora.rank=3")
        assert files(RUN.adapter) == new, f"cut at {cut}"
        assert files(RUN.kept) == old, f"cut at {cut}"
    assert cut > 8


@pytest.mark.parametrize("cut", range(0, 2000, 97))
def test_sampling_cut_at_any_byte_continues_to_the_same_solutions(
    made: Path, partial: bytes, tmp_path: Path, cut: int
) -> None:
    """Through the whole command: the memory check reads the same file before the stage does."""
    run, entry = RunDir(tmp_path), RunDir(made / "runs/r").entry("generate")
    assert entry is not None
    assert len(partial) > 1000
    write(run.work / f"generate-{entry.fingerprint}" / "solutions.partial.jsonl", partial[:cut])
    pipeline.run_stage(load_recipe(made / "r.yaml"), tmp_path, "generate")
    assert run.solutions.read_bytes() == (made / "runs/r/solutions.jsonl").read_bytes()


# Links, names.


def test_outputs_on_another_disk_stay_links(there: Path) -> None:
    for name in ("adapter", "fused"):
        shutil.move(RUN.root / name, there / f"disk-{name}")
        (RUN.root / name).symlink_to(there / f"disk-{name}")
    before = files(there / "disk-adapter")
    pipeline.run(load_recipe("r.yaml", ["lora.rank=3"]), RUN.root)
    assert RUN.adapter.is_symlink()
    assert RUN.fused.is_symlink()
    assert files(there / "disk-adapter") != before
    assert set(before.values()) <= everywhere(RUN.kept)
    shown("train", "r.yaml", "--plain")
    assert files(there / "disk-adapter") == before


def test_a_link_to_a_disk_that_is_not_there_is_refused_before_the_work(there: Path) -> None:
    shutil.move(RUN.adapter, there / "kept-elsewhere")
    RUN.adapter.symlink_to("/nowhere/adapter")
    assert "is a link to /nowhere/adapter" in shown("train", "r.yaml", "--plain", "--set", "lora.rank=3", status=1)


def test_folders_and_files_of_the_users_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL, tmp_path / "model")
    write(tmp_path / "model/LICENSES/MIT.txt", "text")
    write(tmp_path / "model/LICENSE", "terms")
    write(tmp_path / "r.yaml", RECIPE.replace("builtin:arithmetic\nprob", "./model\nprob"))
    pipeline.run(load_recipe("r.yaml"), RUN.root)
    assert (RUN.fused / "LICENSE").read_text() == "terms"
    write(tmp_path / "quickstart/recipe.json", "{}")
    assert load_recipe("quickstart").name == "quickstart"
    shown("preview", "quickstart", "--plain")
    shutil.rmtree(tmp_path / "quickstart")
    for name in ("quickstart", "demo"):
        write(tmp_path / name, RECIPE.replace("limit: 10", "limit: 3"))
    asked: list[int | None] = []

    def run(recipe: Recipe, *_: Any) -> NoReturn:
        asked.append(recipe.problems.limit)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(demo, "run_demo", run)
    upft("demo")
    upft("run", "quickstart")
    assert asked == [load_recipe(shipped_recipes()["demo"]).problems.limit, 3], "the demo is the demo"


# Exports.


@pytest.mark.parametrize("place", ["folder", "folder/below", "file", ".", "home", "link"])
def test_an_export_never_touches_what_is_not_its_own(there: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("HOME", str(there / "home"))
    for name in ("folder/mine.txt", "folder/below/config.json", "home/mine.txt", "file"):
        write(there / name, "mine")
    (there / "link").symlink_to(there / "home")
    before = {name: data for name, data in files(there, hidden=True).items() if not name.startswith("runs/")}
    assert f"--to {place}: " in shown("export", "r.yaml", "--format", "peft", "--to", place, status=1)
    after = {name: data for name, data in files(there, hidden=True).items() if not name.startswith("runs/")}
    assert after == before


@pytest.mark.parametrize("form", ["peft", "dequantized"])
def test_an_export_replaces_an_earlier_one_and_nothing_that_was_changed_in_it(there: Path, form: str) -> None:
    shown("export", "r.yaml", "--format", "dequantized", "--to", "out")
    write(there / "out/.DS_Store", "the Finder's, which makes one wherever somebody looks")
    shown("export", "r.yaml", "--format", form, "--to", "out")
    assert (there / "out/.DS_Store").exists()
    names = {path.name for path in (there / "out").iterdir()}
    assert ("adapter_model.safetensors" in names) == (form == "peft")
    assert ("model.safetensors" in names) == (form == "dequantized")
    name = "adapter_config.json" if form == "peft" else "config.json"
    write(there / "out" / name, "{}")
    said = shown("export", "r.yaml", "--format", form, "--to", "out", status=1)
    assert f"{name} was changed after it was exported" in said
    assert (there / "out" / name).read_text() == "{}"


def test_an_export_that_is_killed_half_way_can_be_repeated(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown("export", "r.yaml", "--format", "peft", "--to", "out")
    whole, move = files(there / "out", hidden=True), shutil.move
    for cut in range(2):
        moves = itertools.count()

        def killed(source: Any, target: Any, moves: Any = moves, cut: int = cut) -> Any:
            if next(moves) == cut:
                write(Path(target), "half")
                raise SystemExit
            return move(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "move", killed)
            with pytest.raises(SystemExit):
                export(load_recipe("r.yaml"), RUN.root, "peft", Path("out"))
        shown("export", "r.yaml", "--format", "peft", "--to", "out")
        assert files(there / "out", hidden=True) == whole
    shutil.rmtree(there / "out")
    write(there / "out" / beside(Path(MANIFEST)).name, "half")  # killed before anything else was there
    shown("export", "r.yaml", "--format", "peft", "--to", "out")
    assert files(there / "out", hidden=True) == whole
