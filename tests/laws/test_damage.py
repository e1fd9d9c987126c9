"""Files of a run that were damaged or changed after they were written: never taken for what the stages made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.input import upft, write
from helpers.runs import RUN, files, made, run_stage, shown, there

from upft_mlx import digests, pipeline
from upft_mlx.api import push
from upft_mlx.errors import PublishError, RowsError, RunDirError, TrainingError
from upft_mlx.evaluation.summary import AGAIN
from upft_mlx.inspection.page import write_page
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir, remove
from upft_mlx.training import checkpoints
from upft_mlx.versions import adopt

__all__ = ["made", "there"]
WRITTEN_EACH_TIME = {"recipe.json", "report.md", "report.svg", "fused/README.md"}
UNREAD = "adapter/checkpoints/"
"""Of a training that is finished."""


def damages(data: bytes) -> dict[str, bytes]:
    """One byte in the middle, half of the file, none of it, more than it."""
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"x"
    return {"flipped": flipped, "cut": data[:middle], "empty": b"", "longer": data + b"\n"}


@pytest.mark.usefixtures("there")
def test_every_damage_to_every_file_of_a_run_is_named_or_made_good() -> None:
    """`upft run` ends with an error that names the file and what to do, or with the file as it was."""
    recipe, whole = load_recipe("r.yaml"), files(RUN.root)
    accepted, tried = [], 0
    for name, data in whole.items():
        for kind, damaged in damages(data).items():
            if damaged == data or name.startswith(UNREAD):
                continue
            tried += 1
            (RUN.root / name).write_bytes(damaged)
            said = outcome(recipe)
            named = str(RUN.root / name) in said and "makes it again" in said
            made_good = not said and (RUN.root / name).read_bytes().strip() == data.strip()
            accepted += [] if named or made_good else [(name, kind, said)]
            (RUN.root / name).write_bytes(data)
    assert {name for name, *_ in accepted} <= {"report.svg"}, "which the command line writes"
    assert tried > 60
    assert outcome(recipe) == ""
    after = files(RUN.root)
    assert {name: after[name] for name in whole.keys() - WRITTEN_EACH_TIME} == {
        name: whole[name] for name in whole.keys() - WRITTEN_EACH_TIME
    }


def outcome(recipe: Recipe) -> str:
    """What `upft run` refuses with; nothing where it ends well."""
    try:
        pipeline.run(recipe, RUN.root)
    except RunDirError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("generate", "solutions.jsonl"),
        ("build", "dataset/valid.jsonl"),
        ("train", "adapter/adapters.safetensors"),
        ("evaluate", "evaluation/arithmetic/tuned.jsonl"),
        ("evaluate", "evaluation/summary.json"),
        ("fuse", "fused/model.safetensors"),
        ("fuse", "fidelity.json"),
    ],
)
@pytest.mark.usefixtures("there")
def test_the_stage_that_is_asked_for_makes_its_damaged_file_again_and_keeps_the_damaged_one(
    stage: str, name: str
) -> None:
    path, whole = RUN.root / name, (RUN.root / name).read_bytes()
    path.write_bytes(damages(whole)["flipped"])
    said = shown("run", "r.yaml", "--plain", status=1)
    assert f"runs/r/{name}: was changed after `upft {stage}` wrote it" in said
    assert ("`upft adopt runs/r` keeps the change" in said) == (stage in ("generate", "build", "train"))
    assert f"`upft {stage} runs/r` makes it again" in said
    shown(stage, "runs/r", "--plain")
    assert path.read_bytes() == whole
    assert damages(whole)["flipped"] in files(RUN.kept).values()
    assert "skipped: current" in shown(stage, "r.yaml", "--plain")


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("build", "solutions.jsonl"),
        ("train", "dataset/train.jsonl"),
        ("evaluate", "adapter/adapters.safetensors"),
        ("fuse", "adapter/adapters.safetensors"),
        ("fuse", "dataset/valid.jsonl"),
    ],
)
@pytest.mark.usefixtures("there")
def test_a_stage_refuses_to_read_what_was_changed(stage: str, name: str) -> None:
    path = RUN.root / name
    path.write_bytes(damages(path.read_bytes())["longer"])
    remove(RUN.root / {"build": "dataset", "train": "adapter", "evaluate": "evaluation", "fuse": "fused"}[stage])
    assert f"runs/r/{name}: was changed" in shown(stage, "r.yaml", "--plain", status=1)


@pytest.mark.parametrize("command", [["show", "r"], ["show", "r", "--flips"]])
@pytest.mark.parametrize("name", ["summary.json", "arithmetic/tuned.jsonl"])
@pytest.mark.usefixtures("there")
def test_what_was_measured_is_shown_as_it_was_measured_or_not_at_all(command: list[str], name: str) -> None:
    path = RUN.evaluation / name
    path.write_bytes(path.read_bytes().replace(b"true", b"false").replace(b'"accuracy": 0', b'"accuracy": 1'))
    path.write_bytes(path.read_bytes() + b"\n")
    if command == ["show", "r"] and name != "summary.json":
        return  # which reads no rows
    assert f"runs/r/evaluation/{name}: was changed" in shown(*command, status=1)


# Pushing and exporting.


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["flipped", "cut", "empty"])
def test_nothing_that_was_damaged_is_pushed(there: Path, name: str, kind: str) -> None:
    path = RUN.fused / name
    path.write_bytes(damages(path.read_bytes())[kind])
    with pytest.raises(RunDirError, match=rf"fused/{name}: was changed after `upft fuse` wrote it"):
        push(load_recipe(there / "r.yaml"), RUN.root, dry_run=True)


def test_a_missing_file_is_not_pushed_around(there: Path) -> None:
    (RUN.fused / "tokenizer.json").unlink()
    with pytest.raises(RunDirError, match=r"lacks fused/tokenizer\.json; `upft fuse runs/r` makes it again"):
        push(load_recipe(there / "r.yaml"), RUN.root, dry_run=True)


@pytest.mark.parametrize("damage", ["gone", "a link to nothing"])
def test_nothing_is_pushed_whose_evaluation_is_missing(there: Path, damage: str) -> None:
    """Its card would say that nothing was measured."""
    path = next(RUN.evaluation.glob("*/base.jsonl"))
    path.unlink()
    if damage != "gone":
        path.symlink_to("/nowhere/at/all")
    with pytest.raises(RunDirError, match=r"evaluate lacks evaluation/.*base\.jsonl; `upft evaluate runs/r` makes it"):
        push(load_recipe(there / "r.yaml"), RUN.root, dry_run=True)


@pytest.mark.parametrize("name", ["vocab.txt", "model-00002-of-00002.safetensors", "modeling.py"])
def test_a_file_that_the_run_did_not_make_is_not_pushed(there: Path, name: str) -> None:
    write(RUN.fused / name, "mine")
    with pytest.raises(PublishError, match=rf"{name}: was not made by this run"):
        push(load_recipe(there / "r.yaml"), RUN.root, dry_run=True)
    assert (RUN.fused / name).read_text() == "mine"


@pytest.mark.usefixtures("there")
def test_nothing_is_exported_from_a_damaged_adapter() -> None:
    path = RUN.adapter / "adapters.safetensors"
    path.write_bytes(damages(path.read_bytes())["flipped"])
    assert "adapters.safetensors: was changed" in shown("export", "r", "--format", "peft", status=1)
    assert not (RUN.root / "export").exists()


# Checkpoints.


@pytest.mark.parametrize("name", ["adapters.safetensors", "optimizer.safetensors", "position.json"])
def test_a_damaged_checkpoint_is_not_continued(made: Path, tmp_path: Path, name: str) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(RunDir(made / "runs/r").checkpoints, run.checkpoints)
    found = checkpoints.latest(run.checkpoints)
    assert found is not None
    path = run.checkpoints / f"step-{found[0].step:07d}" / name
    data = path.read_bytes()
    at = data.rindex(b"0") if name.endswith(".json") else len(data) - 3
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(TrainingError, match=rf"{name} was changed after it was written; move this folder away"):
        checkpoints.latest(run.checkpoints)
    shutil.move(path.parent, tmp_path / "away")
    before = checkpoints.latest(run.checkpoints)
    assert before is not None
    assert before[0].step == found[0].step - 1


def test_checkpoints_of_versions_without_digests_are_continued(made: Path, tmp_path: Path) -> None:
    shutil.copytree(RunDir(made / "runs/r").checkpoints, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").glob("*/digests.json"):
        path.unlink()
    assert checkpoints.latest(tmp_path / "checkpoints") is not None


# Changed on purpose.


@pytest.mark.usefixtures("there")
def test_changed_solutions_are_used_once_they_are_adopted_and_the_card_says_so() -> None:
    lines = RUN.solutions.read_text().splitlines(keepends=True)
    RUN.solutions.write_text("".join(lines[:-1]))
    assert "`upft adopt runs/r` keeps the change" in shown("run", "r.yaml", "--plain", status=1)
    assert "runs/r/solutions.jsonl: adopted" in shown("adopt", "r")
    pipeline.run(load_recipe("r.yaml"), RUN.root)
    text = RUN.train.read_text() + RUN.valid.read_text()
    rows = [json.loads(line)["problem_id"] for line in text.splitlines()]
    assert json.loads(lines[-1])["problem_id"] not in rows
    assert "**The sampled solutions were changed by hand afterwards.**" in (RUN.fused / "README.md").read_text()
    assert "changed by hand since" in RUN.report.read_text()
    assert "skipped: current" in shown("generate", "r.yaml", "--plain")
    RUN.solutions.write_text("".join(lines[:-2]))
    assert "was changed" in shown("build", "r.yaml", "--plain", status=1), "and is checked from then on"
    remove(RUN.solutions)
    pipeline.run(load_recipe("r.yaml"), RUN.root)
    assert RUN.solutions.read_text() == "".join(lines), "sampled again, it is the model's own"
    assert "by hand" not in (RUN.fused / "README.md").read_text()


@pytest.mark.usefixtures("there")
def test_solutions_and_rows_are_adopted_together() -> None:
    for path in (RUN.solutions, RUN.train):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]))
    rows = RUN.train.read_bytes()
    assert adopt(RUN) == ["solutions.jsonl", "dataset/train.jsonl"]
    run_stage("train")
    assert RUN.train.read_bytes() == rows


@pytest.mark.usefixtures("there")
def test_what_cannot_be_adopted_is_refused_with_what_to_do() -> None:
    with pytest.raises(RunDirError, match="nothing to adopt"):
        adopt(RUN)
    whole = RUN.solutions.read_bytes()
    RUN.solutions.write_bytes(whole + b'{"problem_id": 3}\n')
    with pytest.raises(RowsError, match=r"solutions\.jsonl:11: expected the fields"):
        adopt(RUN)
    RUN.solutions.write_bytes(whole)
    RUN.summary.write_bytes(RUN.summary.read_bytes() + b" ")
    with pytest.raises(RunDirError, match=r"summary\.json: what `upft evaluate` found cannot be adopted"):
        adopt(RUN)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(("damage", "why"), [("gone", "is gone"), ("cut", "was changed")])
def test_a_page_says_why_it_leaves_training_rows_out(damage: str, why: str) -> None:
    assert "dataset/valid.jsonl" not in write_page(RUN).read_text(), "they are there"
    whole = RUN.valid.read_bytes()
    RUN.valid.unlink()
    if damage == "cut":
        RUN.valid.write_bytes(whole[:-9])
    text = write_page(RUN).read_text()
    assert f"the training rows are not shown: {RUN.valid}: {why} after `upft build` wrote it" in text
    assert 'id="rows-trained"' not in text


@pytest.mark.usefixtures("there")
def test_show_names_each_file_that_it_cannot_read() -> None:
    for path in (RUN.summary, RUN.fidelity, RUN.metrics, RUN.likelihood, RUN.movement):
        whole = path.read_bytes()
        for damaged in damages(whole).values():
            path.write_bytes(damaged)
            assert f"{path}: was changed after `upft" in shown("show", "r", status=1)
        path.unlink()
        assert f"{path}: is gone after `upft" in shown("show", "r", status=1)
        path.write_bytes(whole)


@pytest.mark.usefixtures("there")
def test_a_summary_that_is_gone_is_made_again() -> None:
    RUN.summary.unlink()
    assert f"{RUN.summary}: is gone after `upft evaluate` wrote it; `upft evaluate" in shown("show", "r", status=1)
    assert "tuned - base" in shown("evaluate", "r.yaml", "--plain")
    assert shown("show", "r")


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(("path", "damage"), [(RUN.solutions, "gone"), (RUN.train, "gone"), (RUN.train, "cut")])
def test_the_report_on_an_adapter_needs_no_solutions_and_no_rows(path: Path, damage: str) -> None:
    """What they cost is not in it then, and a damaged file is named."""
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-20])
    said: list[str] = []
    facts = run_stage("evaluate", notify=lambda event: said.append(str(event)))
    assert facts["economy"] is None
    assert facts["benchmarks"]["arithmetic"]["tuned"]
    assert any(f"{path.name}: was changed" in text for text in said) == (damage == "cut")


@pytest.mark.usefixtures("there")
def test_notes_of_a_repair_are_no_part_of_json() -> None:
    run_stage("generate", "seed=1")
    (first,) = json.loads(shown("kept", "r", "--json"))["kept"]
    RUN.ledger.unlink()
    (second,) = json.loads(upft("kept", "r", "--restore", first["name"], "--json").stdout)["kept"]
    RUN.ledger.unlink()
    assert "its copy takes its place" in shown("kept", "r", "--remove", second["name"])


@pytest.mark.parametrize("option", [(), ("--json",)])
@pytest.mark.usefixtures("there")
def test_notes_of_a_repair_are_printed_even_if_the_command_is_refused_afterwards(option: tuple[str, ...]) -> None:
    RUN.ledger.unlink()
    done = upft("kept", "r", "--restore", "train-0", *option)
    assert done.exit_code == 1
    assert "no kept version 'train-0'" in done.stderr
    assert "its copy takes its place" in (done.stderr if option else done.stdout)
    RUN.ledger.unlink()
    done = upft("adopt", "r", *option)
    assert "its copy takes its place" in (done.stderr if option else done.stdout)


@pytest.mark.usefixtures("there")
def test_damaged_answers_of_the_noise_floor_are_not_taken_over() -> None:
    path = RUN.rows_of("arithmetic", AGAIN)
    whole, summary = path.read_bytes(), RUN.summary.read_text()
    for damaged in damages(whole).values():
        path.write_bytes(damaged)
        run_stage("evaluate")
        assert path.read_bytes() == whole
        assert RUN.summary.read_text() == summary


@pytest.mark.usefixtures("there")
def test_a_folder_in_the_place_of_a_file_is_named() -> None:
    for name in ("report.html", "fused/README.md"):
        (RUN.root / name).unlink(missing_ok=True)
        (RUN.root / name).mkdir()
        said = shown("run", "r.yaml", "--plain", status=1)
        assert f"{RUN.root / name}: there is a folder where this file should go; move it away, then" in said
        (RUN.root / name).rmdir()
    (RUN.root / ".lock").unlink()
    (RUN.root / ".lock").mkdir()
    assert "runs/r: cannot be used as run directory: .lock: " in shown("run", "r.yaml", "--plain", status=1)


def test_a_process_reads_a_file_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", b"x" * 3_000_000)
    first = digests.digest(path)
    path.rename(tmp_path / "b")
    monkeypatch.setattr(Path, "open", None)
    assert digests.digest(tmp_path / "b") == first, "from memory, wherever it is by now"
    monkeypatch.undo()
    write(tmp_path / "b", b"x" * 2_999_999 + b"y")
    assert digests.digest(tmp_path / "b") != first
