"""The methods of compare beside the recipe's own: what they sample with, train on and pick."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from upft_mlx.errors import ProblemsError, RecipeError
from upft_mlx.evaluation.evaluate import WITHHELD
from upft_mlx.grade.correct import is_correct
from upft_mlx.grade.graders import Verdict
from upft_mlx.models.load import Loaded
from upft_mlx.pipeline import opened, prepare, run_stage, take_over
from upft_mlx.recipe.cells import recipe_for_cell
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import EvaluationRow, Solution, TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.studies.compare import compare, run_cell

MakeRecipe = Callable[..., Recipe]


def test_self_distillation_and_the_cold_control_have_settings_of_their_own(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(compare={"cold_temperature": 0.2})
    ssd, cold = recipe_for_cell(recipe, "ssd", 0), recipe_for_cell(recipe, "cold", 0)
    assert (ssd.method, ssd.prefix.selection, ssd.generate.samples) == ("sft", "first", 1)
    assert (ssd.generate.temperature, ssd.generate.top_p, ssd.generate.top_k) == (1.6, 0.8, 20)
    assert (cold.method, cold.generate.temperature) == ("upft", 0.2)


@pytest.mark.parametrize("name", ["ssd:label", "cold:consensus", "best_of_prefix:label", "best_of_prefix:probe"])
def test_what_a_method_cannot_pick_by_is_refused(make_recipe: MakeRecipe, name: str) -> None:
    with pytest.raises(ValidationError, match=r"expected one of .*best_of_prefix"):
        make_recipe(compare={"methods": [name]})


def test_annotated_trains_on_the_datasets_own_solutions(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    texts = [f"First we add {n} and 2, which gives {n + 2}.\n\\boxed{{{n + 2}}}" for n in range(6)]
    rows = [{"id": str(n), "question": f"What is {n} plus 2?", "answer": text} for n, text in enumerate(texts)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"builtin": None, "limit": None, "path": str(tmp_path / "q.jsonl")}
    recipe = make_recipe(method="annotated", problems=own, train={"valid_ratio": 0.0})
    run_stage(recipe, tmp_path / "run", "generate")
    run_stage(recipe, tmp_path / "run", "build")
    made = list(read_rows(tmp_path / "run" / "dataset" / "train.jsonl", TrainingRow))
    assert [row.kind for row in made] == ["full"] * 6
    assert [loaded.tokenizer.decode(row.completion_ids[:-1]) for row in made] == texts
    assert {row.completion_ids[-1] for row in made} == {loaded.eos_id}
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert ledger["generate"]["tokens_sampled"] == 0


def test_annotated_refuses_answers_without_a_solution(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match="20 of 20 answers have fewer than 4 words"):
        run_stage(make_recipe(method="annotated"), tmp_path, "generate")


@pytest.mark.parametrize("digests", [True, False])
def test_solutions_are_taken_over_only_from_a_run_with_digests(
    make_recipe: MakeRecipe, tmp_path: Path, digests: bool
) -> None:
    """Without digests, as in runs of earlier versions, nothing was copied, but the stage counted as done."""
    recipe, donor = make_recipe(), RunDir(tmp_path / "donor")
    run_stage(recipe, donor.root, "generate")
    entry = donor.entry("generate")
    assert entry is not None
    donor.record("generate", entry if digests else replace(entry, outputs={}))
    job = prepare(recipe, tmp_path / "run")
    with opened(job):
        take_over(job, donor)
    assert (job.run.entry("generate") is not None, job.run.solutions.exists()) == (digests, digests)


def test_best_of_prefix_continues_the_picked_prefix_and_trains_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        compare={"methods": ["best_of_prefix:prefix_confidence"], "seeds": 1, "samples": 4},
        generate={"temperature": 1.0},
    )
    found = compare(recipe, tmp_path)
    row = found.methods["best_of_prefix:prefix_confidence"]
    (folder,) = (tmp_path / "compare").glob("best_of_prefix*/seed-0/best_of_prefix/arithmetic/*")
    prefixes = list(read_rows(folder / "prefixes.jsonl", Solution))
    answers = list(read_rows(folder / "answers.jsonl", EvaluationRow))
    assert (len(prefixes), len(answers)) == (8 * 4, 8)
    assert (row.tokens_sampled, row.tokens_trained) == (sum(len(row.completion_ids) for row in prefixes), 0)
    for number, answer in enumerate(answers):
        group = prefixes[4 * number : 4 * number + 4]
        best = max(group, key=lambda p: (p.logprob or 0.0) / (len(p.completion_ids) + (p.finish_reason == "stop")))
        assert answer.completion.startswith(best.completion)
    assert row.benchmarks["arithmetic"].accuracy == sum(answer.correct for answer in answers) / 8
    assert compare(recipe, tmp_path).methods == found.methods, "a second call samples nothing anew"


def test_best_of_prefix_takes_nothing_of_other_settings_and_withholds_private_text(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of other settings were taken over, and mixed up problems where the number of prefixes had changed."""
    question, answer = "Ann has 3 apples and buys 4 more. How many apples has Ann?", "7"
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": question, "answer": answer}) + "\n")
    private = {"name": "mine", "path": str(tmp_path / "mine.jsonl"), "private": True}
    open_one = {"name": "arithmetic", "limit": 3}

    def cell(benchmark: dict[str, Any], **prefix: Any) -> set[Path]:
        recipe = make_recipe(
            prefix={"length": 4, **prefix},
            evaluate={"benchmarks": [benchmark], "max_tokens": 12},
            compare={"samples": 2},
            generate={"temperature": 1.0},
        )
        run_cell(recipe_for_cell(recipe, "best_of_prefix", 0), "best_of_prefix", tmp_path / "cell")
        return set((tmp_path / "cell" / "best_of_prefix").glob(f"{benchmark['name']}/*"))

    (short,) = cell(open_one)
    (long,) = cell(open_one, length=6) - {short}
    for folder, length in ((short, 4), (long, 6)):
        assert {len(row.completion_ids) for row in read_rows(folder / "prefixes.jsonl", Solution)} == {length}
    (hidden,) = cell(private)
    (row,) = read_rows(hidden / "answers.jsonl", EvaluationRow)
    assert row.completion == row.gold == WITHHELD
    assert not (hidden / "prefixes.jsonl").exists()
    before = (hidden / "answers.jsonl").read_bytes()
    (hidden / "prefixes.jsonl").write_text("what a kill left\n")
    monkeypatch.setattr("upft_mlx.job.Job.load", None)  # nothing is sampled again
    assert cell(private) == {hidden}
    assert (hidden / "answers.jsonl").read_bytes() == before
    assert not (hidden / "prefixes.jsonl").exists()
    (other := hidden.with_name("other")).mkdir()
    (other / "prefixes.jsonl").write_text("what a kill left before the settings changed\n")
    assert cell(private) == {hidden, other}
    assert not [*hidden.parent.glob("*/prefixes.jsonl")]


@pytest.mark.parametrize("method", ["base", "best_of_prefix"])
def test_cells_that_another_version_graded_count_by_this_versions_grader(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A cell that is done stays; beside cells of this version its old grades made a difference of their own."""
    one = {"name": "arithmetic", "limit": 3}
    recipe = recipe_for_cell(make_recipe(evaluate={"benchmarks": [one], "max_tokens": 12}), method, 0)
    with monkeypatch.context() as before:
        before.setattr("upft_mlx.evaluation.evaluate.VERSION", 1)
        old = Verdict("old", correct=True)
        before.setattr("upft_mlx.evaluation.evaluate.grade_all", lambda tasks: [old for _ in tasks])
        before.setattr("upft_mlx.studies.best_of_prefix.grade", lambda _: old)
        first = run_cell(recipe, method, tmp_path)
    second = run_cell(recipe, method, tmp_path)
    (path,) = (p for p in tmp_path.rglob("*.jsonl") if p.stem in ("base", "answers"))
    rows = list(read_rows(path, EvaluationRow))
    assert {row.grader for row in rows} == {1}, "nothing is asked again"
    assert set(first.scores["arithmetic"].values()) == {1.0}
    assert second.scores["arithmetic"] == {row.problem_id: is_correct(row.completion, row.gold) for row in rows}
    assert set(second.scores["arithmetic"].values()) != {1.0}


def test_a_method_that_other_fields_rule_out_is_refused_by_name(make_recipe: MakeRecipe) -> None:
    """`upft compare` ended in an unexpected error."""
    with pytest.raises(RecipeError, match=r"compare.methods: rft: generate.temperature: 0 makes all samples equal"):
        recipe_for_cell(make_recipe(generate={"temperature": 0.0}), "rft", 0)
