"""The accuracy on validation problems while training: measured, reported, and what it decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import MODEL
from helpers.train import MakeRecipe, comparable, metrics, run
from pydantic import ValidationError

from upft_mlx.data.problems import Problem
from upft_mlx.demo.world import problems as made
from upft_mlx.errors import ProblemsError
from upft_mlx.events import Event, Note
from upft_mlx.grade.correct import is_correct
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import load
from upft_mlx.pipeline import prepare
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.sampler import sample_chunk
from upft_mlx.training.development import Development
from upft_mlx.training.train import train

__all__ = ["run"]

PROBLEMS = [Problem(str(n), p.question, p.answer) for n, p in enumerate(made("upft", 12))]
"""The validation rows of `run` are those of the first three."""
EACH = {"batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 1, "keep": 20, "evaluate_every": 2}


def given(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """These accuracies, one after the other; the first is the base model's."""
    found = iter(values)
    monkeypatch.setattr(Development, "accuracy", lambda self: next(found))


def trained(recipe: Recipe, run: RunDir) -> tuple[Any, list[str]]:
    notes: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return train(recipe, load(MODEL), run, note, PROBLEMS), notes


def weights(folder: Path) -> dict[str, Any]:
    arrays = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    return {name: array.tolist() for name, array in arrays.items()}


def test_the_accuracy_is_that_of_greedy_answers_before_during_and_after_training(
    make_recipe: MakeRecipe, run: RunDir
) -> None:
    recipe = make_recipe(train={**EACH, "steps": 5, "learning_rate": 3e-2, "save": "last"})
    _, notes = trained(recipe, run)
    lines = {line["step"]: line.get("development_accuracy") for line in metrics(run)}
    assert [step for step, value in lines.items() if value is not None] == [2, 4, 5]
    loaded = load(MODEL)
    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    requests = [Request(renderer.asked(problem.question), 40, key=problem.id) for problem in PROBLEMS[:3]]

    def right() -> float:
        answers = sample_chunk(loaded, requests, Sampling(0.0), seed=0)
        texts = [loaded.tokenizer.decode(answer.ids) for answer in answers]
        return sum(is_correct(t, str(p.answer)) for t, p in zip(texts, PROBLEMS, strict=False)) / 3

    before = right()
    assert read_json(run.likelihood)["fixed"]["development_accuracy"] == before
    assert any(text.startswith(f"before training, {round(3 * before)} of 3 validation problems") for text in notes)
    from mlx_lm.tuner.utils import load_adapters

    load_adapters(loaded.model, str(run.adapter))
    loaded.model.eval()
    assert lines[5] == right()
    assert {before, *lines.values()} - {None} != {before}, "a rate that high changes what the model says"


def test_choices_are_graded_by_their_letters(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, problems = load(MODEL), [Problem(p.id, p.question, "C") for p in PROBLEMS]
    development = Development(make_recipe(train={**EACH, "steps": 2}), loaded, problems, run)
    answer = "Therefore the correct option is (C)."  # the tokenizer is shared by all that load the model
    monkeypatch.setattr(type(loaded.tokenizer), "decode", lambda *_: answer, raising=False)
    assert development.accuracy() == 1


def test_measuring_changes_nothing_of_the_training(make_recipe: MakeRecipe, run: RunDir, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "other")
    shutil.copytree(run.root, other.root)
    plain = {**EACH, "steps": 4, "evaluate_every": None}
    trained(make_recipe(train={**EACH, "steps": 4}, lora={"dropout": 0.1}), run)
    trained(make_recipe(train=plain, lora={"dropout": 0.1}), other)
    assert weights(run.adapter) == weights(other.adapter)
    assert not any("development_accuracy" in line for line in metrics(other))


def test_the_best_accuracy_is_kept_where_it_decides(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, 0.2, 0.4, 0.6, 0.6, 0.5)  # of equal ones the first is the best: it took less training
    position, notes = trained(make_recipe(train={**EACH, "steps": 8, "save": "accuracy"}), run)
    assert (position.best_accuracy, position.accuracy_step) == (0.6, 4)
    assert position.kept("accuracy") == 4
    assert weights(run.adapter) == weights(run.checkpoints / "step-0000004")
    assert notes[-1] == "saved step 4 (best accuracy on validation problems, 60.0 %)"
    given(monkeypatch, 0.2, 0.4, 0.6, 0.6, 0.5)
    shutil.rmtree(run.checkpoints)
    position, _ = trained(make_recipe(train={**EACH, "steps": 8, "validate_every": 8}), run)
    assert position.kept("best") == position.best_step == 8
    assert weights(run.adapter) == weights(run.checkpoints / "step-0000008"), "only the loss decides"


def test_no_gain_on_the_validation_problems_is_said(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, 0.4, 0.2, 0.4)
    _, notes = trained(make_recipe(train={**EACH, "steps": 4, "save": "accuracy"}), run)
    assert notes[-1] == "no step answers more validation problems right than before training (40.0 %)"


def test_training_stops_when_the_accuracy_has_not_become_better_for_long(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, 0.2, 0.5, 0.4, 0.5, 0.9)
    recipe = make_recipe(train={**EACH, "steps": 12, "save": "accuracy", "patience": 2})
    position, notes = trained(recipe, run)
    assert (position.step, position.accuracy_step) == (6, 2)
    assert "stopped after step 6 of 12: no better accuracy since step 2" in notes
    before = weights(run.adapter)
    (run.adapter / "adapters.safetensors").unlink()
    again, _ = trained(recipe, run)
    assert again.step == 6, "killed after its last step, it stays stopped"
    assert weights(run.adapter) == before


@pytest.mark.parametrize("stops", [[3], [1, 5]])
def test_a_stopped_run_keeps_what_a_whole_one_keeps(
    make_recipe: MakeRecipe, run: RunDir, tmp_path: Path, stops: list[int]
) -> None:
    recipe = make_recipe(train={**EACH, "steps": 6, "checkpoint_every": 2, "save": "accuracy"})
    whole = RunDir(tmp_path / "whole")
    shutil.copytree(run.root, whole.root)
    expected, _ = trained(recipe, whole)

    class Killed(BaseException):
        pass

    for after in stops:

        def stop(event: Event, after: int = after) -> None:
            if type(event).__name__ == "Progress" and getattr(event, "done", 0) == after:
                raise Killed

        with pytest.raises(Killed):
            train(recipe, load(MODEL), run, stop, PROBLEMS)
    found, _ = trained(recipe, run)
    assert found == expected
    assert found.accuracy_before is not None
    assert weights(run.adapter) == weights(whole.adapter)
    assert comparable(run) == comparable(whole)


def test_a_checkpoint_of_a_version_without_accuracies_goes_on(make_recipe: MakeRecipe, run: RunDir) -> None:
    settings = {**EACH, "evaluate_every": None}
    trained(make_recipe(train={**settings, "steps": 2}), run)
    (position,) = run.checkpoints.glob("step-0000002/position.json")
    text = position.read_text()
    assert '"accuracy_step"' in text
    data = {k: v for k, v in read_json(position).items() if "accuracy" not in k}

    position.write_text(json.dumps(data))
    (position.parent / "digests.json").unlink()
    found, notes = trained(make_recipe(train={**settings, "steps": 3}), run)
    assert "training continues after step 2" in notes
    assert found.step == 3


def test_problems_that_a_benchmark_has_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A step that was chosen by its answers cannot be reported on the same questions."""
    lines = [f'{{"id": "b{n}", "question": "{p.question} ", "answer": "{p.answer}"}}\n' for n, p in enumerate(PROBLEMS)]
    (tmp_path / "test.jsonl").write_text("".join(lines[5:7]), encoding="utf-8")
    own = {"name": "own", "path": str(tmp_path / "test.jsonl")}
    recipe = make_recipe(train={"evaluate_every": 2}, evaluate={"benchmarks": [own]})
    with pytest.raises(ProblemsError, match=r"2 of the problems are in the benchmark own \(such as ") as refused:
        prepare(recipe, tmp_path / "run")
    assert refused.value.field == "train.evaluate_every"
    private = make_recipe(train={"evaluate_every": 2}, evaluate={"benchmarks": [{**own, "private": True}]})
    with pytest.raises(ProblemsError, match="in the benchmark own: a step"):
        prepare(private, tmp_path / "run")
    prepare(make_recipe(evaluate={"benchmarks": [own]}), tmp_path / "run")  # without it nothing is chosen by answers
    prepare(make_recipe(train={"evaluate_every": 2}), tmp_path / "run")


def test_problems_without_answers_are_refused(make_recipe: MakeRecipe, run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl").write_text('{"question": "Why?"}\n{"question": "How?"}\n', encoding="utf-8")
    recipe = make_recipe(problems={"builtin": None, "path": str(tmp_path / "bare.jsonl")}, train=EACH)
    with pytest.raises(ProblemsError, match="none of the problems has an answer"):
        prepare(recipe, tmp_path / "other")
    with pytest.raises(ProblemsError, match="no validation problem has an answer"):
        train(recipe, load(MODEL), run, problems=PROBLEMS[3:])


def test_settings_that_cannot_be_together_are_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValidationError, match="accuracy, but none is measured"):
        make_recipe(train={"save": "accuracy"})
    with pytest.raises(ValidationError, match="2 without validation problems to ask"):
        make_recipe(train={"evaluate_every": 2, "valid_ratio": 0.0})


def test_no_more_problems_are_asked_than_the_limit(make_recipe: MakeRecipe, run: RunDir) -> None:
    recipe = make_recipe(train={**EACH, "evaluate_limit": 2})
    assert [p.id for p in Development(recipe, load(MODEL), PROBLEMS, run).problems] == ["0", "1"]


def test_the_model_trains_on_after_an_accuracy(make_recipe: MakeRecipe, run: RunDir) -> None:
    loaded = load(MODEL)
    loaded.model.train()
    Development(make_recipe(train=EACH), loaded, PROBLEMS, run).accuracy()
    assert loaded.model.training
