"""The whole: a recipe to a fused, measured model; what is current is skipped, what changed runs again."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.facts import results
from helpers.kill import finish, killed_at, lines_in, newest_step

from upft_mlx import pipeline
from upft_mlx.data.benchmarks import BOXED, load_benchmark, resolve
from upft_mlx.dataset.instruction import instructed
from upft_mlx.errors import ProblemsError, RunDirError
from upft_mlx.events import Event, Graded, Note, StageDone, StageSkipped, StageStarted
from upft_mlx.grade.graders import Task, grade
from upft_mlx.recipe.override import recipe_for_model, with_benchmarks
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.report import verdict
from upft_mlx.rows import EvaluationRow, TrainingRow, read_rows
from upft_mlx.rundir import RunDir, changes, remove

MakeRecipe = Callable[..., Recipe]
BENCHMARKS = [
    {"name": "arithmetic", "limit": 8},
    {"name": "arithmetic", "label": "sampled", "limit": 5, "samples": 3, "temperature": 0.7},
]


class Seen(list[Event]):
    """Remembers the events of a run."""

    def stages(self, kind: type[Any]) -> list[str]:
        return [event.stage for event in self if isinstance(event, kind)]

    def notes(self) -> str:
        return "\n".join(event.text for event in self if isinstance(event, Note))


def run(recipe: Recipe, folder: Path) -> tuple[dict[str, Any], Seen]:
    seen = Seen()
    facts = pipeline.run(recipe, folder, seen.append)
    return facts.dump(), seen


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(recipe_with(), folder)
    return folder


def recipe_with(**sections: dict[str, Any]) -> Recipe:
    data: dict[str, Any] = {
        "name": "test",
        "model": str(MODEL),
        "quantize": {"bits": 4, "group_size": 32},
        "problems": {"builtin": "arithmetic", "limit": 20},
        "generate": {"max_tokens": 60, "batch_size": 4},
        "prefix": {"length": 6, "structure_ratio": 0.2},
        "lora": {"rank": 4, "scale": 8.0},
        "train": {"batch_size": 4, "learning_rate": 1e-3, "report_every": 2, "checkpoint_every": 2},
        "evaluate": {"max_tokens": 30, "batch_size": 8, "benchmarks": BENCHMARKS},
        "publish": {"fuse": "fp16"},
    }
    for section, fields in sections.items():
        data[section] = {**data[section], **fields}
    return Recipe.model_validate(data)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_every_file_of_the_contract(finished: Path) -> None:
    for name in (
        "recipe.json",
        "solutions.jsonl",
        "dataset/train.jsonl",
        "dataset/valid.jsonl",
        "adapter/adapters.safetensors",
        "adapter/adapter_config.json",
        "adapter/checkpoints",
        "metrics.jsonl",
        "evaluation/arithmetic/base.jsonl",
        "evaluation/arithmetic/tuned.jsonl",
        "evaluation/sampled/base.jsonl",
        "evaluation/summary.json",
        "fused/config.json",
        "fused/model.safetensors",
        "fidelity.json",
        "ledger.json",
        "report.md",
    ):
        assert (finished / name).exists(), name


def test_recipe_json_holds_the_resolved_recipe_versions_and_hashes(finished: Path) -> None:
    data = json.loads((finished / "recipe.json").read_text())
    assert data.pop("versions").keys() >= {"upft-mlx", "mlx", "mlx-lm", "python"}
    assert data.pop("hashes").keys() == {"model", "problems", "benchmarks"}
    assert data["prompt"]["instruction"] == BOXED
    assert Recipe.model_validate(data) == instructed(recipe_with(), MODEL)


def test_summary_json_has_the_contracts_fields_and_agrees_with_the_rows(finished: Path) -> None:
    summary = json.loads((finished / "evaluation" / "summary.json").read_text())["benchmarks"]
    assert summary.keys() == {"arithmetic", "sampled"}
    for label, samples in (("arithmetic", 1), ("sampled", 3)):
        for variant in ("base", "tuned"):
            s = summary[label][variant]
            rows = list(read_rows(finished / "evaluation" / label / f"{variant}.jsonl", EvaluationRow))
            assert len(rows) == s["n"] * samples
            assert s["samples"] == samples
            assert s["accuracy"] == pytest.approx(sum(r.correct for r in rows) / len(rows))
            assert s["ci95"][0] <= s["accuracy"] <= s["ci95"][1]
            assert s["mean_tokens"] == pytest.approx(sum(r.tokens for r in rows) / len(rows))
            assert s["truncated"] == pytest.approx(sum(r.finish_reason == "length" for r in rows) / len(rows))
            assert s["pass_at_k"]["1"] == pytest.approx(s["accuracy"])
            assert s["pass_at_k"].keys() == s["maj_at_k"].keys() == ({"1"} if samples == 1 else {"1", "2", "3"})
        paired = summary[label]["paired"]
        delta = summary[label]["tuned"]["accuracy"] - summary[label]["base"]["accuracy"]
        assert paired["delta"] == pytest.approx(delta)
        assert paired["ci95"][0] <= delta <= paired["ci95"][1]
        assert 0 <= paired["p_value"] <= 1


def test_the_ledger_counts_what_was_sampled_and_trained(finished: Path) -> None:
    ledger = json.loads((finished / "ledger.json").read_text())
    solutions = [json.loads(line) for line in (finished / "solutions.jsonl").read_text().splitlines()]
    assert ledger["generate"]["tokens_sampled"] == sum(len(s["completion_ids"]) for s in solutions)
    for stage in ("generate", "evaluate"):
        assert ledger[stage]["tokens_processed"] > ledger[stage]["tokens_sampled"] > 0, "prompts are passed as well"
    assert ledger["train"]["tokens_processed"] > ledger["train"]["tokens_trained"] > 0
    rows = list(read_rows(finished / "dataset" / "train.jsonl", TrainingRow))
    assert ledger["train"]["tokens_trained"] == sum(len(r.completion_ids) for r in rows)
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert sum(m["examples"] for m in metrics) == len(rows)
    assert all(entry["done"] for entry in ledger.values())
    assert ledger["train"]["peak_memory_bytes"] > 0


def test_the_report_says_what_was_sampled_trained_and_measured(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    ledger = json.loads((finished / "ledger.json").read_text())
    assert f"| {ledger['generate']['tokens_sampled']} |" in text
    assert f"| {ledger['train']['tokens_trained']} |" in text
    assert "| arithmetic | base | 8 x 1 | 0 |" in text
    assert "| sampled | tuned | 5 x 3 | 0.7 |" in text
    assert "of the adapter's effect" in text


def test_a_second_run_repeats_nothing(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    _, seen = run(recipe_with(), copy)
    assert seen.stages(StageSkipped) == ["generate", "build", "train", "evaluate", "fuse"]
    assert seen.stages(StageStarted) == []
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("sections", "runs", "why"),
    [
        ({"train": {"learning_rate": 2e-3}}, ["train", "evaluate", "fuse"], "changed: train.learning_rate"),
        ({"lora": {"rank": 2}}, ["train", "evaluate", "fuse"], "changed: lora.rank"),
        ({"prefix": {"template": " Go."}}, ["build", "train", "evaluate", "fuse"], "changed: prefix.template"),
        (
            {"prefix": {"length": 5}},
            ["generate", "build", "train", "evaluate", "fuse"],
            "generate: runs again, changed: prefix.length",
        ),
        ({"publish": {"fuse": "bf16"}}, ["fuse"], "changed: publish.fuse"),
        ({"evaluate": {"max_tokens": 25}}, ["evaluate"], "evaluate: runs again"),
        (
            {"generate": {"temperature": 1.0}},
            ["generate", "build", "train", "evaluate", "fuse"],
            "generate: runs again, changed: generate.temperature",
        ),
    ],
)
def test_a_changed_field_runs_its_stage_and_those_after_it_again_and_says_so(
    copy: Path, sections: dict[str, Any], runs: list[str], why: str
) -> None:
    _, seen = run(recipe_with(**sections), copy)
    assert seen.stages(StageStarted) == seen.stages(StageDone) == runs
    assert why in seen.notes()


def test_training_again_keeps_the_base_models_rows(copy: Path) -> None:
    base = copy / "evaluation" / "arithmetic" / "base.jsonl"
    rows = base.read_bytes()
    _, seen = run(recipe_with(train={"learning_rate": 2e-3}), copy)
    assert base.read_bytes() == rows
    graded = [event for event in seen if isinstance(event, Graded)]
    assert {event.resumed for event in graded if event.variant == "base"} == {True}
    assert {event.resumed for event in graded if event.variant == "tuned"} == {False}


@pytest.mark.parametrize(
    ("name", "stage"),
    [("fused", "fuse"), ("fused/config.json", "fuse"), ("adapter/adapters.safetensors", "train")],
)
def test_a_deleted_output_is_made_again(copy: Path, name: str, stage: str) -> None:
    remove(copy / name)
    _, seen = run(recipe_with(), copy)
    assert seen.stages(StageStarted)[0] == stage
    assert (copy / name).exists()


def test_interrupted_evaluation_continues_to_the_same_rows_and_summary(copy: Path) -> None:
    files = [copy / "evaluation" / "sampled" / "tuned.jsonl", copy / "evaluation" / "summary.json"]
    whole = [path.read_bytes() for path in files]
    entry = RunDir(copy).entry("evaluate")
    assert entry is not None
    RunDir(copy).record("evaluate", replace(entry, done=False))
    files[0].write_bytes(whole[0][: len(whole[0]) * 2 // 3])
    files[1].unlink()
    _, seen = run(recipe_with(), copy)
    assert seen.stages(StageStarted) == ["evaluate"]
    resumed = [e.resumed for e in seen if isinstance(e, Graded) and (e.benchmark, e.variant) == ("sampled", "tuned")]
    assert True in resumed
    assert False in resumed
    assert [path.read_bytes() for path in files] == whole


def test_a_single_stage_needs_those_before_it(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(RunDirError, match=r"build needs the stage generate, which is not done; run `upft generate`"):
        pipeline.run_stage(recipe_with(), tmp_path / "new", "build")
    with pytest.raises(RunDirError, match=r"train needs the stage build, which was done with other settings"):
        pipeline.run_stage(recipe_with(prefix={"template": " Go."}), copy, "train")


def test_evaluation_without_an_adapter_measures_the_base_alone(tmp_path: Path) -> None:
    facts = pipeline.run_stage(recipe_with(), tmp_path / "new", "evaluate").dump()
    assert facts["benchmarks"]["arithmetic"].keys() == {"base", "rounding"}


def test_two_processes_cannot_share_a_run_directory(copy: Path) -> None:
    with RunDir(copy).locked(), pytest.raises(RunDirError, match="another upft process"):
        run(recipe_with(), copy)


def test_base_and_tuned_are_asked_the_same_with_the_same_seeds(copy: Path) -> None:
    """With an adapter that does nothing, tuned is base, sampled completions included."""
    recipe = recipe_with(train={"learning_rate": 1e-12}, publish={"fuse": "adapter"})
    facts, _ = run(recipe, copy)
    for label in ("arithmetic", "sampled"):
        base, tuned = (
            list(read_rows(copy / "evaluation" / label / f"{variant}.jsonl", EvaluationRow))
            for variant in ("base", "tuned")
        )
        assert base == tuned
        assert facts["benchmarks"][label]["paired"]["delta"] == 0


@pytest.mark.slow
def test_stock_mlx_lm_answers_with_the_adapter_and_with_the_fused_model(finished: Path) -> None:
    for arguments in (
        ["--model", str(MODEL), "--adapter-path", str(finished / "adapter")],
        ["--model", str(finished / "fused")],
    ):
        command = [sys.executable, "-m", "mlx_lm", "generate", *arguments]
        command += ["--prompt", "Ann has 3 apples and buys 4 more. How many?", "--max-tokens", "24"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert "Generation:" in done.stdout


@pytest.mark.slow
def test_stock_mlx_lm_fuses_the_adapter(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_lm", "fuse", "--model", str(MODEL)]
    command += ["--adapter-path", str(finished / "adapter"), "--save-path", str(tmp_path / "fused")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fused" / "model.safetensors").exists()


@pytest.mark.slow
def test_an_adapter_that_stock_mlx_lm_trained_on_our_rows_is_evaluated(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_lm", "lora", "--train", "--model", str(MODEL), "--mask-prompt"]
    command += ["--data", str(finished / "dataset"), "--batch-size", "1", "--iters", "3", "--learning-rate", "1e-2"]
    command += ["--num-layers", "2", "--val-batches", "1", "--adapter-path", str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    recipe = with_benchmarks(recipe_for_model(str(MODEL), ["evaluate.max_tokens=24"]), ["arithmetic"], limit=4)
    facts = pipeline.run_stage(recipe, tmp_path / "run", "evaluate", adapter=tmp_path / "theirs").dump()
    assert facts["benchmarks"]["arithmetic"]["tuned"]["n"] == 4
    variants = [(tmp_path / f"run/evaluation/arithmetic/{variant}.jsonl").read_text() for variant in ("base", "tuned")]
    assert variants[0] != variants[1]


def test_methods_share_one_pipeline(tmp_path: Path) -> None:
    for method, kinds in (("sft", {"full"}), ("structure_only", {"structure"}), ("rft", {"full"})):
        data = recipe_with().dump()
        data |= {"method": method, "train": {"steps": 1, "batch_size": 4}}
        data["evaluate"]["benchmarks"] = []
        data["publish"]["fuse"] = "adapter"
        if method == "rft":
            data["generate"] |= {"samples": 2, "keep": 1}
        run(Recipe.model_validate(data), tmp_path / method)
        rows = list(read_rows(tmp_path / method / "dataset" / "train.jsonl", TrainingRow))
        assert {row.kind for row in rows} == kinds
        assert method != "rft" or len({row.problem_id for row in rows}) == len(rows)


def test_real_questions_go_from_end_to_end(shared: Path, tmp_path: Path) -> None:
    """GSM8K questions with the embedded model: prompts, dataset and grading on real text."""
    gsm8k = shared / "data" / "benchmarks"
    recipe = Recipe.model_validate(
        {
            "name": "gsm8k",
            "model": str(MODEL),
            "problems": {"path": str(gsm8k / "gsm8k_train.jsonl"), "limit": 6, "shuffle": True},
            "generate": {"max_tokens": 8},
            "prefix": {"length": 4, "structure_ratio": 0.0},
            "train": {"batch_size": 4},
            "evaluate": {
                "max_tokens": 8,
                "benchmarks": [{"name": "gsm8k", "path": str(gsm8k / "gsm8k_test.jsonl"), "limit": 3}],
            },
        }
    )
    facts, _ = run(recipe, tmp_path / "run")
    rows = list(read_rows(tmp_path / "run" / "evaluation" / "gsm8k" / "base.jsonl", EvaluationRow))
    assert [row.gold for row in rows] == ["18", "3", "70000"]
    assert facts["benchmarks"]["gsm8k"]["base"]["n"] == 3


def test_benchmarks_take_their_golds_bare(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"problem": "1 + 1?", "solution": "It is\\n#### 2"}\n'
        '{"problem": "half?", "solution": "\\\\boxed{\\\\frac12}"}\n'
    )
    recipe = recipe_with(evaluate={"benchmarks": [{"name": "own", "path": str(file)}]})
    (entry,) = resolve(recipe.evaluate)
    assert [problem.answer for problem in load_benchmark(entry)] == ["2", "\\frac12"]
    file.write_text('{"problem": "1 + 1?"}\n')
    with pytest.raises(ProblemsError, match=r"benchmark own: 1 problem has no answer \(first: 0\)"):
        load_benchmark(entry)


def variant(accuracy: float, tokens: float = 30.0, truncated: float = 0.0) -> dict[str, Any]:
    return {"accuracy": accuracy, "mean_tokens": tokens, "truncated": truncated, "n": 100}


@pytest.mark.parametrize(
    ("base", "tuned", "paired", "expected"),
    [
        (
            *(variant(0.5), variant(0.6), (0.1, 0.02, 0.18, 0.01)),
            ["x: tuned is better than base: +10.0 points [+2.0, +18.0], p 0.010"],
        ),
        (
            *(variant(0.5), variant(0.4), (-0.1, -0.18, -0.02, 0.01)),
            ["x: tuned is worse than base: -10.0 points [-18.0, -2.0], p 0.010"],
        ),
        (
            *(variant(0.5), variant(0.6), (0.1, 0.0, 0.2, 0.05)),
            [
                "x: can't tell yet: +10.0 points [+0.0, +20.0], p 0.050; "
                "about 10,000 problems would settle a change of 2 points"
            ],
        ),
        (
            *(variant(0.5), variant(0.5, tokens=12.0), (0.0, -0.01, 0.02, 1.0)),
            ["x: no measurable change", "x: completions went from 30 to 12 tokens"],
        ),
        (
            *(variant(0.5), variant(0.5, truncated=0.2), (0.0, -0.02, 0.01, 1.0)),
            ["x: no measurable change", "x: cut answers went from 0 % to 20 %"],
        ),
        (
            *(variant(0.1, truncated=0.51), variant(0.3, truncated=0.5), (0.2, 0.1, 0.3, 0.001)),
            ["x: void: 51 % of base's answers were cut; raise evaluate.max_tokens, unless the cut answers repeat"],
        ),
        (
            *(variant(0.5), variant(0.5, truncated=0.6), (0.0, -0.1, 0.1, 1.0)),
            [
                "x: void: 60 % of tuned's answers were cut; raise evaluate.max_tokens, unless the cut answers repeat",
                "x: cut answers went",
            ],
        ),
        (  # what never stops is broken, not badly measured
            *(variant(0.5), variant(0.1, truncated=0.9), (-0.4, -0.5, -0.3, 0.001)),
            ["x: tuned is worse than base: ", "x: cut answers went from 0 % to 90 %"],
        ),
        (
            *(variant(0.0), variant(0.0), (0.0, -0.1, 0.1, 1.0)),
            ["x: void: neither base nor tuned has a right answer; use easier problems, or check the `answer` column"],
        ),
        (
            *(variant(0.0, truncated=0.4), variant(0.0, truncated=0.4), (0.0, -0.1, 0.1, 1.0)),
            ["x: void: neither base nor tuned has a right answer; raise evaluate.max_tokens, unless the cut answers"],
        ),
    ],
)
def test_the_verdict_claims_what_the_numbers_allow(
    base: dict[str, Any], tuned: dict[str, Any], paired: tuple[float, ...], expected: list[str]
) -> None:
    delta, low, high, p = paired
    numbers = {"delta": delta, "ci95": [low, high], "p_value": p}
    found = verdict(results({"x": {"base": base, "tuned": tuned, "paired": numbers}}))
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_changes_names_nested_fields() -> None:
    assert changes({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 1, "c": 3}, "e": 1}) == ["a.c", "d", "e"]


@pytest.mark.parametrize("content", ["[1]", '{"generate": []}', '{"generate": {"done": true}}'])
def test_a_ledger_of_another_shape_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(RunDirError, match=r"ledger\.json: not a ledger of this version; if a later"):
        RunDir(tmp_path).entry("generate")


@pytest.mark.parametrize(("name", "expected"), [("gsm8k", True), ("own", False)])
def test_golds_without_percent_sign_are_met_where_the_benchmark_drops_it(
    name: str, expected: bool, tmp_path: Path
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "How many percent?", "answer": "60"}\n')
    (entry,) = resolve(recipe_with(evaluate={"benchmarks": [{"name": name, "path": str(file)}]}).evaluate)
    (problem,) = load_benchmark(entry)
    task = Task("\\boxed{60\\%}", str(problem.answer), entry.grader, entry.percent_as_unit)
    assert grade(task).correct is expected


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_files_of_a_whole_one(tmp_path: Path) -> None:
    """SIGKILL of the real command in each of its stages, and at a random moment after it."""
    settings = (
        "problems.limit=48",
        "generate.batch_size=8",
        "train.batch_size=4",
        "train.checkpoint_every=3",
        "evaluate.batch_size=8",
        "evaluate.benchmarks=[{name: arithmetic, limit: 32}]",
    )
    command = ["run", "quickstart", *(f"--set={setting}" for setting in settings), "--run-dir"]
    finish([*command, tmp_path / "whole"])
    killed = RunDir(tmp_path / "killed")
    rows = [killed.rows_of("arithmetic", variant) for variant in ("base", "tuned")]
    moments: tuple[Callable[[], bool], ...] = (
        lambda: lines_in(killed.partial) > 8,
        lambda: killed.solutions.exists(),
        lambda: killed.train.exists(),
        lambda: newest_step(killed) > 6,
        lambda: lines_in(*rows) > 15,
        lambda: (killed.evaluation / "summary.json").exists(),
    )
    rng = random.Random(0)
    running = [killed_at([*command, killed.root], reached, rng.random() / 5) for reached in moments]
    assert sum(running) >= 4, running
    finish([*command, killed.root])
    for name in (
        "solutions.jsonl",
        "dataset/train.jsonl",
        "dataset/valid.jsonl",
        "adapter/adapters.safetensors",
        "evaluation/arithmetic/base.jsonl",
        "evaluation/arithmetic/tuned.jsonl",
        "evaluation/summary.json",
        "fused/model.safetensors",
        "fidelity.json",
    ):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
